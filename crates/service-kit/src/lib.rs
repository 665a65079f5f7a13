//! What wxhub's services share: settings, catalog, callers, telemetry, health, shutdown, storage, sealing
