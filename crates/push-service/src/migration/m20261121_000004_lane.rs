#![expect(
    elided_lifetimes_in_paths,
    reason = "async_trait wants the signature as the trait spells it"
)]

use sea_orm_migration::{prelude::*, sea_orm::DatabaseBackend};

use super::{index, moment};

#[derive(DeriveMigrationName)]
pub(super) struct Migration;

/// What the queue and its history need since messages wait in lanes.
#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let columns = [
            ColumnDef::new("lane")
                .string_len(255)
                .not_null()
                .default("")
                .to_owned(),
            ColumnDef::new("broadcast_id")
                .char_len(36)
                .null()
                .to_owned(),
            moment(manager, "delivered_time").null().to_owned(),
            ColumnDef::new("failed_attempts").text().null().to_owned(),
        ];
        // SQLite adds one column a statement.
        for column in columns {
            if !manager
                .has_column("message", column.get_column_name())
                .await?
            {
                let table = Table::alter()
                    .table("message")
                    .add_column(column)
                    .to_owned();
                manager.alter_table(table).await?;
            }
        }
        let lane = match manager.get_database_backend() {
            DatabaseBackend::MySql => "CONCAT('0/', app_id, '/any/', caller)",
            _ => "'0/' || app_id || '/any/' || caller",
        };
        let waiting =
            format!("UPDATE message SET lane = {lane} WHERE state IN (2, 3) AND lane = ''");
        manager
            .get_connection()
            .execute_unprepared(&waiting)
            .await?;
        for (name, columns) in [
            (
                "message_lane",
                ["state", "lane", "next_attempt_time"].as_slice(),
            ),
            ("message_app", &["app_id", "message_id"]),
            ("message_wechat_msg", &["wechat_msg_id"]),
        ] {
            let mut with = Index::create();
            for column in columns {
                with.col(*column);
            }
            index(manager, "message", name, with).await?;
        }
        if manager.has_index("message", "message_due").await? {
            let due = Index::drop()
                .name("message_due")
                .table("message")
                .to_owned();
            manager.drop_index(due).await?;
        }
        Ok(())
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let mut due = Index::create();
        due.col("state").col("next_attempt_time");
        index(manager, "message", "message_due", due).await?;
        for name in ["message_lane", "message_app", "message_wechat_msg"] {
            let index = Index::drop().name(name).table("message").to_owned();
            manager.drop_index(index).await?;
        }
        for name in ["lane", "broadcast_id", "delivered_time", "failed_attempts"] {
            let table = Table::alter().table("message").drop_column(name).to_owned();
            manager.alter_table(table).await?;
        }
        Ok(())
    }
}
