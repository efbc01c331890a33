//! What pg-watchdog must see, and how soon.
