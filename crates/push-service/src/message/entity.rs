//! The `message` table: the queue and the truth in one.

use sea_orm::entity::prelude::*;

#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "message")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub message_id: String,
    pub app_id: String,
    pub open_id: String,
    /// The account by whose name the caller meant the user.
    pub account: Option<String>,
    pub caller: String,
    /// Unique per caller and app; none gives every call a message of its own.
    pub request_id: Option<String>,
    /// JSON of [`super::Content`].
    pub content: String,
    /// What was taken from the pool for it, where its content names none.
    pub form_id: Option<String>,
    pub state: State,
    pub attempts: u32,
    pub possible_duplicate: bool,
    pub errcode: i64,
    pub errmsg: String,
    pub wechat_msg_id: Option<String>,
    pub create_time: DateTimeUtc,
    /// Not before.
    pub schedule_time: Option<DateTimeUtc>,
    /// Not after.
    pub expire_time: Option<DateTimeUtc>,
    pub sent_time: Option<DateTimeUtc>,
    /// The first attempt whose outcome stayed unknown.
    pub ambiguous_time: Option<DateTimeUtc>,
    /// When it is due. Of a claimed message it is the end of the lease, so that it falls due again by itself when its
    /// worker dies. None once there is nothing left to do.
    pub next_attempt_time: Option<DateTimeUtc>,
    /// Which queue it waits in: [`super::Lane`].
    pub lane: String,
    /// The broadcast that it is a part of.
    pub broadcast_id: Option<String>,
    /// When WeChat reported that the user got it.
    pub delivered_time: Option<DateTimeUtc>,
    /// JSON of the attempts that WeChat did not accept: [`super::FailedAttempt`].
    pub failed_attempts: Option<String>,
    /// Who holds the lease.
    pub claim_id: Option<String>,
    /// W3C `traceparent` of the call that it was accepted in.
    pub trace_parent: Option<String>,
}

/// Where a message is, numbered as in the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumIter, DeriveActiveEnum)]
#[sea_orm(rs_type = "i8", db_type = "TinyInteger")]
pub enum State {
    #[sea_orm(num_value = 2)]
    Queued,
    #[sea_orm(num_value = 3)]
    Sending,
    #[sea_orm(num_value = 4)]
    Sent,
    #[sea_orm(num_value = 5)]
    Delivered,
    #[sea_orm(num_value = 6)]
    Failed,
    #[sea_orm(num_value = 7)]
    Cancelled,
    #[sea_orm(num_value = 8)]
    Expired,
}

impl State {
    /// Its name in the protocol, as people are told it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Queued => "QUEUED",
            Self::Sending => "SENDING",
            Self::Sent => "SENT",
            Self::Delivered => "DELIVERED",
            Self::Failed => "FAILED",
            Self::Cancelled => "CANCELLED",
            Self::Expired => "EXPIRED",
        }
    }
}

#[derive(Clone, Copy, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
