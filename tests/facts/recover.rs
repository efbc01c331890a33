//! What pg-recover must do, and must leave alone.
