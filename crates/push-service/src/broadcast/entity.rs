//! The `broadcast` table: what is said, how far it is, and how many it has reached.

use sea_orm::entity::prelude::*;

#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "broadcast")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub broadcast_id: String,
    pub app_id: String,
    pub caller: String,
    /// Unique per caller and app; none gives every call a broadcast of its own.
    pub request_id: Option<String>,
    /// JSON of [`crate::message::Content`]. It never changes, so that it is kept in memory.
    pub content: String,
    /// [`crate::message::Content::kind`].
    pub kind: String,
    pub state: State,
    /// The recipient up to whom, in order, there are messages.
    pub expanded_to: String,
    /// How many it is for.
    pub recipients: i64,
    /// For how many of them it was decided: a message was made, or none will be.
    pub expanded: i64,
    pub sent: i64,
    pub delivered: i64,
    pub failed: i64,
    pub cancelled: i64,
    pub expired: i64,
    pub create_time: DateTimeUtc,
    pub start_time: Option<DateTimeUtc>,
    pub end_time: Option<DateTimeUtc>,
    /// Not after.
    pub expire_time: Option<DateTimeUtc>,
}

impl Model {
    /// How many have come to their end, whichever.
    pub fn ended(&self) -> i64 {
        self.sent + self.delivered + self.failed + self.cancelled + self.expired
    }

    /// How many have not.
    pub fn waiting(&self) -> i64 {
        self.recipients - self.ended()
    }

    /// How many of those are messages in the queue.
    pub fn queued(&self) -> i64 {
        self.expanded - self.ended()
    }

    /// Whether nothing more will happen by itself.
    pub fn is_over(&self) -> bool {
        match self.state {
            State::Draft | State::Running | State::Paused => false,
            State::Cancelling => self.waiting() == 0,
            State::Cancelled | State::Finished => true,
        }
    }
}

/// Where a broadcast is, numbered as in the protocol where it has a number there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumIter, DeriveActiveEnum)]
#[sea_orm(rs_type = "i8", db_type = "TinyInteger")]
pub enum State {
    #[sea_orm(num_value = 1)]
    Draft,
    #[sea_orm(num_value = 2)]
    Running,
    #[sea_orm(num_value = 3)]
    Paused,
    #[sea_orm(num_value = 4)]
    Cancelled,
    #[sea_orm(num_value = 5)]
    Finished,
    /// Cancelled, and what it left is being cleared away.
    #[sea_orm(num_value = 101)]
    Cancelling,
}

impl State {
    /// Its name in the protocol, as people are told it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Draft => "DRAFT",
            Self::Running => "RUNNING",
            Self::Paused => "PAUSED",
            Self::Cancelled | Self::Cancelling => "CANCELLED",
            Self::Finished => "FINISHED",
        }
    }
}

#[derive(Clone, Copy, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
