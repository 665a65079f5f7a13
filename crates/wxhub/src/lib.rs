//! The wxhub command: everything in one process to develop with, the demo, and the operator's verbs
