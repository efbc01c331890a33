//! What pg-notify must deliver, and how often.
