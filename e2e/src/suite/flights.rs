//! The real job: flights as JSON on a real Kafka, out of order, with poison and late rows; once planned (`availableNow`,
//! then again with `drain`), once continuous. Equal to DuckDB's answer row for row, every reject in the dead letters once.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::{Flights, Options, Work, await_caught_up, await_markers, make_topics};
use crate::bed::{Server, root};
use crate::engine::{Engine, Launch, Watched};
use crate::kafka::Loader;
use crate::manifest::Manifest;

const PATIENCE: Duration = Duration::from_secs(600);

pub fn run(options: &Options, modes: &[String]) -> Result<String> {
    let flights = Flights::load(&options.data)?;
    let work = Work::new("flights")?;
    let kafka = Server::kafka(options.kafka_port)?;
    let brokers = kafka.address();
    let mut good = true;
    for mode in modes {
        let began = Instant::now();
        let case = Case {
            options,
            flights: &flights,
            work: &work,
            brokers: &brokers,
            prefix: format!("{mode}-"),
        };
        good &= match mode.as_str() {
            "planned" => case.planned()?,
            _ => case.continuous()?,
        };
        println!(
            "flights: {mode} took {:.1} s",
            began.elapsed().as_secs_f64()
        );
    }
    ensure!(
        good,
        "rows differ, see above; {} holds logs and dumps",
        work.folder.display()
    );
    work.done()?;
    Ok(format!(
        "{} flights, {}: rows equal DuckDB's, dead letters complete",
        flights.count,
        modes.join(" and ")
    ))
}

struct Case<'a> {
    options: &'a Options,
    flights: &'a Flights,
    work: &'a Work,
    brokers: &'a str,
    prefix: String,
}

impl Case<'_> {
    fn topic(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// The example with this trigger, its topics and a checkpoint of its own.
    fn launch(&self, trigger: &str) -> Result<Launch> {
        let file = self.work.path(&format!("{}job.yaml", self.prefix));
        let checkpoint = self.work.path(&format!("{}checkpoint", self.prefix));
        Manifest::load(&root().join("examples/flights/job.yaml"))?
            .rehome(self.brokers, &self.prefix)?
            .set(&["spec", "trigger"], trigger)?
            .set(
                &["spec", "checkpoint", "storage"],
                &format!("{{local: {{path: '{}'}}}}", checkpoint.display()),
            )?
            .save(&file)?;
        Ok(Launch {
            program: self.options.penstock.clone(),
            manifest: file,
            state: self.work.path(&format!("{}state", self.prefix)),
            secrets: None,
            memory: None,
            log: self.work.path(&format!("{}engine.log", self.prefix)),
            fault: None,
            base_epochs: None,
            workers: 1,
            apart: false,
        })
    }

    fn load(&self) -> Result<Loader> {
        make_topics(self.brokers, &self.prefix)?;
        let began = Instant::now();
        let mut loader = Loader::new(self.brokers, &self.topic("flights"))?;
        self.flights.put_slice(&mut loader, 0, 1)?;
        loader.flush()?;
        println!(
            "flights: {} rows loaded in {:.1} s",
            loader.sent(),
            began.elapsed().as_secs_f64()
        );
        Ok(loader)
    }

    fn run_to_the_end(&self, trigger: &str) -> Result<()> {
        let began = Instant::now();
        let mut engine = Engine::start(&self.launch(trigger)?)?;
        let status = engine.wait(PATIENCE)?;
        ensure!(
            status.success(),
            "`penstock run` with {trigger} ended with {status}, see {}",
            self.work.folder.display()
        );
        println!(
            "flights: {trigger} ended after {:.1} s",
            began.elapsed().as_secs_f64()
        );
        Ok(())
    }

    /// Once to the end of what is there; then the late rows, which only a second run sees, and its drain closes all windows.
    fn planned(&self) -> Result<bool> {
        let mut loader = self.load()?;
        self.run_to_the_end("{availableNow: {drain: false}}")?;
        let late = self.flights.put_late(&mut loader)?;
        self.run_to_the_end("{availableNow: {drain: true}}")?;
        self.compare(&late)
    }

    /// One run that never ends by itself: late rows when all others are committed, then markers that close all windows.
    fn continuous(&self) -> Result<bool> {
        let mut loader = self.load()?;
        let mut engine = Engine::start(&self.launch("{continuous: {}}")?)?;
        await_caught_up(&mut engine, PATIENCE)?;
        let first = self.flights.first.as_str();
        engine.until("the watermark has passed the first flight", PATIENCE, |s| {
            s.watermark.as_deref() > Some(first)
        })?;
        let late = self.flights.put_late(&mut loader)?;
        await_caught_up(&mut engine, PATIENCE)?;
        self.flights.put_markers(&mut loader, 1)?;
        await_caught_up(&mut engine, PATIENCE)?;
        self.flights.put_markers(&mut loader, 2)?;
        let markers = self.flights.markers()?;
        await_markers(
            self.brokers,
            &self.topic("flights-hourly"),
            markers,
            &mut engine,
            PATIENCE,
        )?;
        await_markers(
            self.brokers,
            &self.topic("flights-six-hours"),
            markers * 6,
            &mut engine,
            PATIENCE,
        )?;
        engine.interrupt(Duration::from_secs(60))?;
        self.compare(&late)
    }

    fn compare(&self, late: &[(i32, i64)]) -> Result<bool> {
        let (options, brokers, work) = (self.options, self.brokers, self.work);
        let hourly = self.flights.compare(
            options,
            brokers,
            &self.topic("flights-hourly"),
            "hourly",
            work,
        )?;
        let six_hours = self.flights.compare(
            options,
            brokers,
            &self.topic("flights-six-hours"),
            "six-hours",
            work,
        )?;
        let rejects = self
            .flights
            .rejects(late)
            .compare(brokers, &self.topic("flights-rejected"))?;
        Ok(hourly && six_hours && rejects)
    }
}
