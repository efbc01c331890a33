//! What the programs of pg-recovery have in common.

pub mod args;
pub mod ballast;
pub mod client;
pub mod clock;
pub mod cluster;
pub mod command;
pub mod config;
pub mod control;
pub mod counter;
pub mod deadline;
pub mod error;
pub mod evidence;
pub mod exit;
pub mod fault;
pub mod health;
pub mod lock;
pub mod log;
pub mod meaning;
pub mod modes;
pub mod mount;
pub mod owner;
pub mod pause;
pub mod pidfile;
pub mod point;
pub mod port;
pub mod prestart;
pub mod process;
pub mod record;
pub mod server_log;
pub mod socket;
pub mod standing;
pub mod state;
pub mod terminals;
pub mod unit;
pub mod wal;

pub use error::{Error, Result};
