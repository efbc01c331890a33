//! What pg-status must show.
