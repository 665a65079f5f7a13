#![doc = include_str!("../README.md")]

pub mod callback;
mod client;
pub mod crypto;
pub mod customer;
mod errcode;
mod error;
mod id;
pub mod jsapi;
mod json;
mod message;
mod secret;

pub use self::{
    client::{
        Client, ClientOptions, CodeSession, Issued, OAuthGrant, OAuthRequest, OAuthScope,
        OAuthUser, PhoneNumber, TicketType, oauth_authorize_url,
    },
    customer::{CustomerContent, CustomerMessage, Typing, TypingCommand},
    errcode::{Class, ErrCode},
    error::{ApiError, BuildError, Error, TransportError},
    id::{AppId, InvalidId, MsgId, OpenId, UnionId},
    message::{
        FormTemplateMessage, MiniProgramLink, MiniProgramState, SubscribeMessage, TemplateData,
        TemplateMessage,
    },
    secret::{AccessToken, AppSecret, RefreshToken, SessionKey, Ticket, UserToken},
};
