//! The options every program has: --cluster, --config, --json, --help, --version.

use std::path::PathBuf;

use lexopt::prelude::*;

use crate::config::{Config, canonical};
use crate::error::{Error, Result};

#[derive(Debug, Default)]
pub struct Args {
    /// `16/main`; empty means every cluster of the host.
    pub clusters: Vec<String>,
    pub config: Option<PathBuf>,
    pub json: bool,
    /// Options of this program alone, without their dashes.
    pub flags: Vec<String>,
    /// Options of this program alone that have a value.
    pub values: Vec<(String, String)>,
    pub words: Vec<String>,
}

impl Args {
    /// Parses the command line. `flags` are the program's own options without a value. Prints help or version and ends
    /// the process when asked to.
    pub fn parse(help: &str, flags: &[&str]) -> Result<Self> {
        Self::parse_with_values(help, flags, &[])
    }

    /// The same for a program that has options with a value too: `values`.
    pub fn parse_with_values(help: &str, flags: &[&str], values: &[&str]) -> Result<Self> {
        Self::from(lexopt::Parser::from_env(), help, flags, values)
    }

    fn from(mut parser: lexopt::Parser, help: &str, flags: &[&str], values: &[&str]) -> Result<Self> {
        let mut args = Args::default();
        while let Some(arg) = parser.next()? {
            match arg {
                Long("cluster") => args.clusters.push(canonical(&parser.value()?.string()?)),
                Long("config") => args.config = Some(parser.value()?.into()),
                Long("json") => args.json = true,
                Long("help") | Short('h') => {
                    crate::log::print(help)?;
                    std::process::exit(0);
                }
                Long("version") => {
                    crate::log::print(concat!(env!("CARGO_PKG_VERSION"), "\n"))?;
                    std::process::exit(0);
                }
                Long(flag) if flags.contains(&flag) => args.flags.push(flag.to_string()),
                Long(name) if values.contains(&name) => {
                    let name = name.to_string();
                    args.values.push((name, parser.value()?.string()?));
                }
                Value(word) => args.words.push(word.string()?),
                other => return Err(other.unexpected().into()),
            }
        }
        Ok(args)
    }

    pub fn has(&self, flag: &str) -> bool {
        self.flags.iter().any(|f| f == flag)
    }

    /// The value of an option of this program; the last one counts.
    pub fn value(&self, name: &str) -> Option<&str> {
        self.values.iter().rev().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    pub fn load_config(&self) -> Result<Config> {
        Config::load(self.config.as_deref())
    }

    /// Refuses words for a program that takes none.
    pub fn no_words(&self) -> Result<()> {
        match self.words.first() {
            Some(word) => Err(Error::usage(format!("unexpected argument \"{word}\"")).hint("Try --help.")),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Result<Args> {
        Args::from(lexopt::Parser::from_args(words), "", &["plan"], &["to"])
    }

    #[test]
    fn a_cluster_may_be_written_both_ways() {
        assert_eq!(parse(&["--cluster", "16-main", "--cluster=15/a-b"]).unwrap().clusters, ["16/main", "15/a-b"]);
    }

    #[test]
    fn an_unknown_option_is_a_usage_error() {
        assert_eq!(parse(&["--force"]).unwrap_err().code, crate::exit::Code::Usage);
        assert!(parse(&["--plan"]).unwrap().has("plan"));
        assert_eq!(parse(&["--to", "/a", "--to=/b"]).unwrap().value("to"), Some("/b"));
    }
}
