//! Users.

use prost_types::Timestamp;
use proto::auth::v1::{
    self as wire, BatchGetUsersRequest, BatchGetUsersResponse, DeleteUserRequest,
    DeleteUserResponse, GetUserRequest, GetUserResponse, ListUsersRequest, ListUsersResponse,
};
use service_kit::Caller;
use wechat::OpenId;

use super::Service;
use crate::{error::Error, user::User};

impl Service {
    pub(super) async fn get_user(
        &self,
        caller: &Caller,
        request: GetUserRequest,
    ) -> Result<GetUserResponse, Error> {
        let found = self.find_user(caller, &request).await?;
        Ok(GetUserResponse {
            user: Some(user(found)),
        })
    }

    async fn find_user(&self, caller: &Caller, request: &GetUserRequest) -> Result<User, Error> {
        let users = &self.auth.users;
        let by_id = !request.user_id.is_empty();
        if by_id && !(request.app_id.is_empty() && request.open_id.is_empty()) {
            return Err(Error::field("user_id", "excludes app_id and open_id"));
        }
        let user = if by_id {
            let user_id = request.user_id.parse();
            let user_id = user_id.map_err(|_| Error::field("user_id", "must be a UUID"))?;
            users.get(user_id).await?
        } else {
            if request.app_id.is_empty() {
                let problem = "is missing: name the user by it, or by app_id and open_id";
                let field = if request.open_id.is_empty() {
                    "user_id"
                } else {
                    "app_id"
                };
                return Err(Error::field(field, problem));
            }
            let catalog = self.auth.catalog.current();
            let app = catalog
                .app(&request.app_id)
                .filter(|app| caller.apps.contains(&app.app_id))
                .ok_or(Error::AppUnknown)?;
            let open_id = OpenId::try_from(request.open_id.as_str());
            let open_id = open_id
                .map_err(|error| Error::field("open_id", format!("is malformed: {error}")))?;
            users.by_open_id(&app.app_id, &open_id).await?
        };
        user.filter(|user| self.is_open(caller, &user.app_id))
            .ok_or(Error::UserUnknown)
    }

    #[expect(clippy::unused_async, reason = "unfinished")]
    pub(super) async fn batch_get_users(
        &self,
        _caller: &Caller,
        _request: BatchGetUsersRequest,
    ) -> Result<BatchGetUsersResponse, Error> {
        Err(Error::Unfinished)
    }

    #[expect(clippy::unused_async, reason = "unfinished")]
    pub(super) async fn list_users(
        &self,
        _caller: &Caller,
        _request: ListUsersRequest,
    ) -> Result<ListUsersResponse, Error> {
        Err(Error::Unfinished)
    }

    #[expect(clippy::unused_async, reason = "unfinished")]
    pub(super) async fn delete_user(
        &self,
        _caller: &Caller,
        _request: DeleteUserRequest,
    ) -> Result<DeleteUserResponse, Error> {
        Err(Error::Unfinished)
    }
}

pub(super) fn user(user: User) -> wire::User {
    wire::User {
        user_id: user.user_id.to_string(),
        app_id: user.app_id.into(),
        open_id: user.open_id.into(),
        union_id: user.union_id.map(String::from).unwrap_or_default(),
        nickname: user.nickname.unwrap_or_default(),
        create_time: Some(Timestamp::from(user.create_time)),
        last_login_time: Some(Timestamp::from(user.last_login_time)),
    }
}
