//! How busy the host is: pressure stall information (Documentation/accounting/psi.rst). Kernels without it say nothing.

/// What can be waited for.
pub const KINDS: [&str; 3] = ["cpu", "memory", "io"];

/// Percent of the last ten seconds or last minute (`avg10`, `avg60`) in which some task waited for this.
pub fn some(kind: &str, average: &str) -> Option<f64> {
    parse(&std::fs::read_to_string(format!("/proc/pressure/{kind}")).ok()?, average)
}

/// `some avg10=0.00 avg60=1.23 ...`
fn parse(text: &str, average: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix("some "))?;
    line.split_whitespace().find_map(|word| word.strip_prefix(average)?.strip_prefix('='))?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_of_time_in_which_some_task_waited_is_read() {
        let text = "some avg10=7.50 avg60=99.5 avg300=0.00 total=1\nfull avg10=0.00 avg60=12.00 avg300=0.00 total=1\n";
        assert_eq!((parse(text, "avg10"), parse(text, "avg60"), parse(text, "avg6")), (Some(7.5), Some(99.5), None));
    }
}
