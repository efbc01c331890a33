//! What pg-cert-renew must renew, and when.
