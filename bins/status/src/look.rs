//! What the page shows: looked at when somebody asks, once a second at most however many ask, by a thread of its own, for
//! nothing that it waits for may keep an answer.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use shared::cluster::Cluster;
use shared::config::Config;
use shared::record::{self, Record};
use shared::tally::Sums;
use tokio::sync::watch;

use crate::facts::{self, Host};

/// How old an answer may be.
const FRESH: Duration = Duration::from_secs(1);
/// systemd needs longer to answer than all else together, so it is asked after the others are told.
const UNITS: Duration = Duration::from_secs(5);
/// What is older than this is waited for longer: it is from before somebody came back.
const STALE: Duration = Duration::from_secs(10);
const SHORT: Duration = Duration::from_millis(25);
const LONG: Duration = Duration::from_secs(3);

/// All that can be told at a moment.
pub struct Sight {
    pub at: Instant,
    pub host: Host,
    pub records: Arc<Vec<Record>>,
    pub sums: Arc<Sums>,
}

#[derive(Clone)]
pub struct Look {
    ask: SyncSender<()>,
    seen: watch::Receiver<Option<Arc<Sight>>>,
}

impl Look {
    pub fn start(config: Option<PathBuf>) -> std::io::Result<Look> {
        let (ask, asked) = sync_channel(1);
        let (tell, seen) = watch::channel(None);
        std::thread::Builder::new().name("look".into()).spawn(move || keep_looking(config, &asked, &tell))?;
        Ok(Look { ask, seen })
    }

    /// `None`: nothing is known yet, and whatever is looked at does not answer.
    pub async fn now(&self) -> Option<Arc<Sight>> {
        let known = self.seen.borrow().clone();
        let age = known.as_ref().map_or(Duration::MAX, |sight| sight.at.elapsed());
        if age < FRESH {
            return known;
        }
        let asked = Instant::now();
        // Full: the next look has not begun yet, and will do.
        let _ = self.ask.try_send(());
        let patience = if age < STALE { SHORT } else { LONG };
        let mut seen = self.seen.clone();
        let is_new = |sight: &Option<Arc<Sight>>| sight.as_ref().is_some_and(|sight| sight.at >= asked);
        let _ = tokio::time::timeout(patience, seen.wait_for(is_new)).await;
        self.seen.borrow().clone()
    }
}

fn keep_looking(path: Option<PathBuf>, asked: &Receiver<()>, tell: &watch::Sender<Option<Arc<Sight>>>) {
    let mut config = Config::default();
    let mut history = (None, Arc::default(), Arc::default());
    let mut units = facts::units();
    let mut units_at = Instant::now();
    while asked.recv().is_ok() {
        let at = Instant::now();
        let mut mistake = None;
        match Config::load(path.as_deref()) {
            Ok(loaded) => config = loaded,
            Err(why) => mistake = Some(why.message),
        }
        let clusters = Cluster::discover(&config).unwrap_or_else(|why| {
            mistake.get_or_insert(why.message);
            Vec::new()
        });
        let signature = Some(record::signature());
        if history.0 != signature {
            let records = record::all();
            let sums = Sums::with(&records);
            history = (signature, Arc::new(records), Arc::new(sums));
        }
        let (_, records, sums) = history.clone();
        let host = Host { mistake, ..facts::gather(&clusters, &config, &records, units.clone()) };
        tell.send_replace(Some(Arc::new(Sight { at, host, records, sums })));
        if units_at.elapsed() > UNITS {
            units = facts::units();
            units_at = Instant::now();
        }
    }
}
