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

/// How often is looked whether there is something to report.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Other workers want to know soon what is open here; all else has time until the next of so many looks.
const LOOKS: u32 = 5;

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
    // Whether the agent knows that the worker retires.
    let mut is_known = worker.life.retired();
    sender.send(&FromWorker::Hello(hello(worker)), None).await?;
    let mut ticks = tokio::time::interval(LOOK_EVERY);
    let mut reported = Report::default();
    let mut looks = 0_u32;
    loop {
        select! {
            // In this order: whoever ends at once says first that it retires, or it would pass for one that has failed.
            biased;
            () = worker.life.retirement(), if !is_known => {
                is_known = true;
                sender.send(&FromWorker::Hello(hello(worker)), None).await?;
            }
            () = worker.life.over() => {
                sender.send(&FromWorker::Report(worker.report()), None).await?;
                return Ok(());
            }
            _ = ticks.tick() => {
                let report = worker.report();
                let all = looks.is_multiple_of(LOOKS);
                looks = looks.wrapping_add(1);
                if is_news(&report, &reported, all) {
                    sender.send(&FromWorker::Report(report.clone()), None).await?;
                    reported = report;
                }
            }
            message = worker.reserve.within(receiver.receive()) => {
                let Some((message, descriptor)) = message? else { return Ok(()) };
                is_known |= matches!(message, ToWorker::Retire { .. });
                handle(worker, &mut sender, message, descriptor).await?;
            }
        }
    }
}

fn hello(worker: &Worker) -> Hello {
    Hello {
        version: VERSION,
        pid: process::id(),
        index: worker.index,
        retired: worker.life.retired(),
        listeners: worker.listeners().len() as u32,
    }
}

/// Whether a report is worth sending: for anything in it, or only for what is open.
fn is_news(report: &Report, reported: &Report, all: bool) -> bool {
    if all {
        return report != reported;
    }
    live(report).ne(live(reported))
}

fn live(report: &Report) -> impl Iterator<Item = (&str, u32)> {
    let backends = report.services.iter().flat_map(|service| &service.backends);
    backends.filter(|it| it.live > 0).map(|it| (it.id.as_str(), it.live))
}

async fn handle(
    worker: &Rc<Worker>,
    sender: &mut Sender<FromWorker>,
    message: ToWorker,
    descriptor: Option<OwnedFd>,
) -> anyhow::Result<()> {
    match (message, descriptor) {
        (ToWorker::Settings(settings), _) => {
            worker.reserve.with(|| worker.apply(*settings));
            ready(worker, sender).await?;
        }
        (ToWorker::Listen { address }, Some(socket)) => {
            let listening = worker.reserve.with(|| worker.listen(address, socket));
            listening.with_context(|| format!("listener {address}"))?;
            ready(worker, sender).await?;
        }
        (ToWorker::Unlisten { address }, _) => worker.unlisten(address).await,
        (ToWorker::SendListeners, _) => {
            for (address, socket) in worker.listeners() {
                sender.send(&FromWorker::Listener { address }, Some(socket.as_fd())).await?;
            }
        }
        (ToWorker::AccessLog, Some(file)) => worker.life.log_to(file).context("access log")?,
        (ToWorker::Broker, Some(socket)) => {
            worker.splicing.desk.open(socket).context("broker's socket")?;
        }
        (ToWorker::Flows { ipv6 }, Some(table)) => {
            // Without it all else goes on.
            if let Err(error) = worker.splicing.flows.put(ipv6, table) {
                warn!("the flow table cannot be used: {error}: connections are not spliced");
            }
        }
        (ToWorker::Others { live }, _) => worker.others(&live.into_iter().collect()),
        (ToWorker::Reset { service, backend }, _) => worker.reset(&service, &backend),
        (ToWorker::Retire { deadline }, _) => worker.retire(deadline),
        (ToWorker::Stop, _) => worker.life.stop(),
        (
            message @ (ToWorker::Listen { .. }
            | ToWorker::AccessLog
            | ToWorker::Broker
            | ToWorker::Flows { .. }),
            None,
        ) => {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::{BackendReport, ServiceReport};

    fn report(live: u32, picked: u64) -> Report {
        let id = "a".to_owned();
        let backends = vec![BackendReport { id, live, picked, ..BackendReport::default() }];
        let service = ServiceReport { backends, ..ServiceReport::default() };
        Report { services: vec![service], log_lines_lost: 0 }
    }

    #[test]
    fn what_is_open_is_reported_soon_and_all_else_in_its_time() {
        for (report, soon, sometime) in
            [(report(1, 1), false, false), (report(1, 2), false, true), (report(2, 1), true, true)]
        {
            let reported = self::report(1, 1);
            assert_eq!(is_news(&report, &reported, false), soon, "{report:?}");
            assert_eq!(is_news(&report, &reported, true), sometime, "{report:?}");
        }
    }
}
