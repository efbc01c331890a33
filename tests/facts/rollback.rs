//! What pg-rollback must put back.
