//! What installing, upgrading and removing the package must do.
