//! One file for each fault: what it imitates, and by which mechanism. An injection mends nothing: that is for the product.

pub mod c1_bad_postgresql_conf;
pub mod c2_bad_pg_hba_conf;
pub mod c3_missing_preload_library;
pub mod h2_long_crash_recovery;
pub mod o1_operator_off;
pub mod o3_standby;
pub mod o5_data_directory_in_use;
pub mod p11_socket_directory;
pub mod p12_socket_removed;
pub mod p1_postmaster_killed;
pub mod p2_all_processes_stopped;
pub mod p2_postmaster_stopped;
pub mod p3_checkpointer_stopped;
pub mod p4_backend_killed;
pub mod p6_postmaster_pid_unusable;
pub mod p7_pid_recycled;
pub mod p8_postmaster_pid_removed;
pub mod p9_orphan_backend;
pub mod s11_newest_wal_removed;
pub mod s2_wal_disk_full;
pub mod s6_dead_volume;
pub mod s7_data_directory_permissions;
pub mod s9_pg_control_missing;
pub mod session;
pub mod t1_state_file;
