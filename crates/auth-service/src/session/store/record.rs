//! A session as one text: `1 <user> <app> <openid> <unionid> <created> <epoch> <client>`, where the first is the format's
//! version, the unionid may be empty, and the client is all the rest.

use super::Session;
use crate::{error::Error, session::epoch::Epoch};

const VERSION: &str = "1";

pub(super) fn write(session: &Session) -> String {
    let union_id = session.union_id.as_ref().map_or("", |id| id.as_str());
    format!(
        "{VERSION} {} {} {} {union_id} {} {} {}",
        session.user_id,
        session.app_id,
        session.open_id,
        session.created,
        session.epoch.0,
        session.client
    )
}

pub(super) fn read(text: &str) -> Result<Session, Error> {
    parse(text).ok_or(Error::Stored("session"))
}

fn parse(text: &str) -> Option<Session> {
    // None of them holds a space, but for the last.
    let mut fields = text.splitn(8, ' ');
    let mut next = || fields.next();
    if next()? != VERSION {
        return None;
    }
    Some(Session {
        user_id: next()?.parse().ok()?,
        app_id: next()?.try_into().ok()?,
        open_id: next()?.try_into().ok()?,
        union_id: match next()? {
            "" => None,
            id => Some(id.try_into().ok()?),
        },
        created: next()?.parse().ok()?,
        epoch: Epoch(next()?.parse().ok()?),
        client: next()?.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_reads_as_it_was_written() {
        for (union_id, client) in [(None, ""), (Some("u1"), "  Mozilla/5.0 (微 信)\n ")] {
            let session = Session {
                user_id: "0192f0c1-2345-7000-8000-000000000001".parse().unwrap(),
                app_id: "wx0000000000000001".parse().unwrap(),
                open_id: "oABC".parse().unwrap(),
                union_id: union_id.map(|id| id.parse().unwrap()),
                created: 1_795_245_472_992,
                epoch: Epoch(u64::MAX),
                client: client.to_owned(),
            };
            let text = write(&session);
            assert_eq!(read(&text).unwrap(), session);
            for end in 0..text.len() - client.len() {
                assert!(read(&text[..end]).is_err(), "{}", &text[..end]);
            }
            assert!(read(&text.replacen('1', "2", 1)).is_err());
        }
    }
}
