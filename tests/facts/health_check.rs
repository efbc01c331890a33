//! What pg-health-check must answer.
