//! One file for each fault: what it imitates, and by which mechanism.
