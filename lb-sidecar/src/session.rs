//! A connection of an agent to this worker: what the agent says is done, and what happens is reported.

use std::{
    collections::HashMap,
    os::fd::{AsFd, OwnedFd},
    process,
    rc::Rc,
    time::Duration,
};

use anyhow::{Context as _, bail};
use tokio::{net::UnixStream, select};
use tracing::warn;

use crate::{
    control::{FromWorker, Hello, Report, Sender, ToWorker, VERSION, channel},
    worker::Worker,
};

/// How often changes are reported.
const REPORT_EVERY: Duration = Duration::from_secs(1);

/// Serves the connection to its end, or to the worker's.
pub async fn serve(worker: Rc<Worker>, stream: UnixStream) {
    // What other workers have is known only through an agent.
    let _forget = Forget(worker.clone());
    if let Err(error) = talk(&worker, stream).await {
        warn!("control connection: {error:#}");
    }
}

struct Forget(Rc<Worker>);

impl Drop for Forget {
    fn drop(&mut self) {
        self.0.others(&HashMap::new());
    }
}

async fn talk(worker: &Rc<Worker>, stream: UnixStream) -> anyhow::Result<()> {
    let (mut sender, mut receiver) = channel::<FromWorker, ToWorker>(stream);
    let hello = Hello {
        version: VERSION,
        pid: process::id(),
        index: worker.index,
        retired: worker.life.retired(),
        listeners: worker.listeners().len() as u32,
    };
    sender.send(&FromWorker::Hello(hello), None).await?;
    let mut ticks = tokio::time::interval(REPORT_EVERY);
    let mut reported = Report::default();
    loop {
        select! {
            message = receiver.receive() => {
                let Some((message, descriptor)) = message? else { return Ok(()) };
                handle(worker, &mut sender, message, descriptor).await?;
            }
            _ = ticks.tick() => {
                let report = worker.report();
                if report != reported {
                    sender.send(&FromWorker::Report(report.clone()), None).await?;
                    reported = report;
                }
            }
            () = worker.life.over() => {
                sender.send(&FromWorker::Report(worker.report()), None).await?;
                return Ok(());
            }
        }
    }
}

async fn handle(
    worker: &Rc<Worker>,
    sender: &mut Sender<FromWorker>,
    message: ToWorker,
    descriptor: Option<OwnedFd>,
) -> anyhow::Result<()> {
    match (message, descriptor) {
        (ToWorker::Settings(settings), _) => {
            worker.apply(*settings);
            ready(worker, sender).await?;
        }
        (ToWorker::Listen { address }, Some(socket)) => {
            worker.listen(address, socket).with_context(|| format!("listener {address}"))?;
            ready(worker, sender).await?;
        }
        (ToWorker::Unlisten { address }, _) => worker.unlisten(address),
        (ToWorker::SendListeners, _) => {
            for (address, socket) in worker.listeners() {
                sender.send(&FromWorker::Listener { address }, Some(socket.as_fd())).await?;
            }
        }
        (ToWorker::AccessLog, Some(file)) => worker.life.log_to(file).context("access log")?,
        (ToWorker::Others { live }, _) => worker.others(&live.into_iter().collect()),
        (ToWorker::Retire { deadline }, _) => worker.retire(deadline),
        (ToWorker::Stop, _) => worker.life.stop(),
        (message @ (ToWorker::Listen { .. } | ToWorker::AccessLog), None) => {
            bail!("{message:?} came without a descriptor");
        }
    }
    Ok(())
}

async fn ready(worker: &Worker, sender: &mut Sender<FromWorker>) -> anyhow::Result<()> {
    if worker.is_ready() {
        sender.send(&FromWorker::Ready, None).await?;
    }
    Ok(())
}
