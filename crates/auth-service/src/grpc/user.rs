//! Users.

use std::collections::HashMap;

use prost_types::Timestamp;
use proto::auth::v1::{
    self as wire, BatchGetUsersRequest, BatchGetUsersResponse, DeleteUserRequest,
    DeleteUserResponse, GetUserRequest, GetUserResponse, ListUsersRequest, ListUsersResponse,
};
use service_kit::Caller;
use wechat::{OpenId, UnionId};

use super::{Service, paging};
use crate::{
    error::Error,
    user::{InvalidUserId, User, UserId},
};

/// Users that one BatchGetUsers asks for.
const BATCH_MAX: usize = 1_000;

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
        if !request.user_id.is_empty() {
            if !(request.app_id.is_empty() && request.open_id.is_empty()) {
                return Err(Error::field("user_id", "excludes app_id and open_id"));
            }
            return self.user(caller, &request.user_id).await;
        }
        if request.app_id.is_empty() {
            let problem = "is missing: name the user by it, or by app_id and open_id";
            let field = if request.open_id.is_empty() {
                "user_id"
            } else {
                "app_id"
            };
            return Err(Error::field(field, problem));
        }
        let app = self.app(caller, &request.app_id)?;
        let open_id = OpenId::try_from(request.open_id.as_str());
        let open_id =
            open_id.map_err(|error| Error::field("open_id", format!("is malformed: {error}")))?;
        let user = self.auth.users.by_open_id(&app.app_id, &open_id).await?;
        user.ok_or(Error::UserUnknown)
    }

    /// The user with this id, if of an app that is open to the caller.
    pub(super) async fn user(&self, caller: &Caller, user_id: &str) -> Result<User, Error> {
        let user = self.auth.users.get(parse(user_id, "user_id")?).await?;
        user.filter(|user| self.is_open(caller, &user.app_id))
            .ok_or(Error::UserUnknown)
    }

    pub(super) async fn batch_get_users(
        &self,
        caller: &Caller,
        request: BatchGetUsersRequest,
    ) -> Result<BatchGetUsersResponse, Error> {
        if request.user_ids.len() > BATCH_MAX {
            let problem = format!("must be at most {BATCH_MAX}");
            return Err(Error::field("user_ids", problem));
        }
        let ids = request.user_ids.iter().map(|id| parse(id, "user_ids"));
        let ids = ids.collect::<Result<Vec<_>, _>>()?;
        let found = self.auth.users.batch(&ids).await?;
        let found: HashMap<UserId, User> = found
            .into_iter()
            .filter(|user| self.is_open(caller, &user.app_id))
            .map(|user| (user.user_id, user))
            .collect();
        let users = ids.iter().filter_map(|id| found.get(id).cloned());
        Ok(BatchGetUsersResponse {
            users: users.map(user).collect(),
        })
    }

    pub(super) async fn list_users(
        &self,
        caller: &Caller,
        request: ListUsersRequest,
    ) -> Result<ListUsersResponse, Error> {
        let size = paging::size(request.page_size)?;
        let after = paging::after::<UserId>(&request.page_token)?;
        let users = &self.auth.users;
        // One more says whether there is another page.
        let mut found = match (request.app_id.as_str(), request.union_id.as_str()) {
            ("", "") => {
                return Err(Error::field(
                    "app_id",
                    "is missing: list by it or by union_id",
                ));
            }
            (app_id, "") => {
                let app = self.app(caller, app_id)?;
                users.of_app(&app.app_id, after, size + 1).await?
            }
            ("", union_id) => {
                let union_id = UnionId::try_from(union_id)
                    .map_err(|error| Error::field("union_id", format!("is malformed: {error}")))?;
                let catalog = self.auth.catalog.current();
                let apps = catalog.apps().iter().map(|app| app.app_id.clone());
                let apps: Vec<_> = apps.filter(|app| caller.apps.contains(app)).collect();
                users.of_person(&union_id, &apps, after, size + 1).await?
            }
            _ => return Err(Error::field("union_id", "excludes app_id")),
        };
        let more = found.len() > size;
        found.truncate(size);
        let last = found.last().filter(|_| more).map(|user| user.user_id);
        Ok(ListUsersResponse {
            users: found.into_iter().map(user).collect(),
            next_page_token: paging::token(last),
        })
    }

    pub(super) async fn delete_user(
        &self,
        caller: &Caller,
        request: DeleteUserRequest,
    ) -> Result<DeleteUserResponse, Error> {
        let user_id = parse(&request.user_id, "user_id")?;
        let auth = &self.auth;
        let user = auth.users.get(user_id).await?;
        if let Some(user) = &user {
            if !self.is_open(caller, &user.app_id) {
                return Ok(DeleteUserResponse {});
            }
            self.forget(user).await?;
            // The last of what names the user: whatever failed before it is done by a retry.
            auth.users.delete(user_id).await?;
        }
        // After the row: a login that still saw it is under way since before. And without it, for a retry.
        auth.sessions.revoke_user(user_id).await?;
        if let Some(user) = &user {
            // What such a login, or a bind, wrote meanwhile. Should the same person come anew within this moment, they
            // are asked to log in once more before data is opened, or to bind again.
            self.forget(user).await?;
        }
        Ok(DeleteUserResponse {})
    }

    /// Removes what is kept of a user beside the row and the sessions.
    async fn forget(&self, user: &User) -> Result<(), Error> {
        let (app_id, open_id) = (&user.app_id, &user.open_id);
        let sessions = &self.auth.sessions;
        sessions.forget_session_key(app_id, open_id).await?;
        self.auth.bindings.unbind_user(app_id, open_id).await?;
        Ok(())
    }
}

fn parse(user_id: &str, field: &'static str) -> Result<UserId, Error> {
    let user_id = user_id.parse();
    user_id.map_err(|error: InvalidUserId| Error::field(field, error.to_string()))
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
