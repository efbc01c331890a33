//! What pg-backup must keep, and prove.
