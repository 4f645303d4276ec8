//! Every manifest of `e2e/attacks` through what judges it: the schema, the webhook, and the controller with the webhook away. Each
//! names in its head the asset, the mechanism, who stops it and in which words; `UPDATE=1` writes the words anew.
//!
//! What the API server itself does with them (fields that no schema has, bounds, names) is shown by `e2e/kind/attacks.py`.

mod planner;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use chrono::DateTime;
use penstock_crds::job::StreamingJob;
use penstock_crds::manifest::load_for;
use penstock_crds::validate::{Bounds, Place};
use penstock_operator::admission::{Judge, judge, verdict};
use penstock_operator::build::Child;
use penstock_operator::decide::{Decision, decide};
use penstock_operator::facts::Facts;
use penstock_operator::lint::Linter;
use penstock_operator::settings::Settings;
use penstock_operator::status::bounded;
use penstock_operator::unreadable;
use serde_json::{Value, json};

const NAMESPACE: &str = "tenant";
const UID: &str = "0f3c0000-1111-2222-3333-444455556666";

/// Who stops an attack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stop {
    /// The API server, by the schema: `kubectl apply` is refused, and what is sent without its strictness is cut off.
    Schema,
    /// The rules of a manifest: the webhook, else the controller.
    Rules,
    /// The planner: the webhook, else the controller.
    Planner,
    /// The controller alone, which sees other objects.
    Controller,
    /// It passes the schema and cannot be read: the webhook, else the controller.
    Unread,
    /// Nobody has to: the children are as those of any job, and the text in them is data.
    Harmless,
}

/// A manifest and its head.
struct Attack {
    path: PathBuf,
    text: String,
    head: BTreeMap<String, String>,
    stop: Stop,
}

/// A line of the head, `# name: value`.
fn of_head(line: &str) -> Option<(&str, &str)> {
    line.strip_prefix("# ")?.split_once(": ")
}

impl Attack {
    fn read(path: PathBuf) -> Self {
        let text = fs::read_to_string(&path).unwrap();
        let head: BTreeMap<String, String> = text
            .lines()
            .map_while(of_head)
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        let stop = match head.get("stop").map(String::as_str) {
            Some("schema") => Stop::Schema,
            Some("rules") => Stop::Rules,
            Some("planner") => Stop::Planner,
            Some("controller") => Stop::Controller,
            Some("unread") => Stop::Unread,
            Some("harmless") => Stop::Harmless,
            other => panic!("{}: stop: {other:?}", path.display()),
        };
        for needed in ["asset", "mechanism"] {
            assert!(head.contains_key(needed), "{}: no {needed}", path.display());
        }
        Self {
            path,
            text,
            head,
            stop,
        }
    }

    /// As the API server stores it.
    fn object(&self) -> Value {
        let mut object: Value = serde_yaml::from_str(&self.text).unwrap();
        let namespace = self.head.get("namespace").map_or(NAMESPACE, String::as_str);
        object["metadata"]["namespace"] = json!(namespace);
        object["metadata"]["uid"] = json!(UID);
        object["metadata"]["generation"] = json!(1);
        object
    }

    /// Whether it is stopped in the words of its head; with `UPDATE` the head is told them.
    fn expect(&self, said: &[String]) -> Result<(), String> {
        let said = said.join("; ").escape_debug().to_string();
        let said: String = said.chars().take(300).collect();
        if std::env::var_os("UPDATE").is_some() {
            let head = self.text.lines().take_while(|line| of_head(line).is_some());
            let old = |line: &&str| !line.starts_with("# words: ");
            let body = self
                .text
                .lines()
                .skip_while(|line| of_head(line).is_some())
                .collect::<Vec<_>>();
            let words = format!("# words: {said}");
            let lines: Vec<&str> = head
                .filter(old)
                .chain([words.as_str()])
                .chain(body)
                .collect();
            fs::write(&self.path, lines.join("\n") + "\n").unwrap();
            return Ok(());
        }
        let words = self.head.get("words").map_or("", String::as_str);
        match words == said {
            true => Ok(()),
            false => Err(format!("expected {words:?}, told {said:?}")),
        }
    }
}

fn attacks() -> Vec<Attack> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../e2e/attacks");
    let inside = |at: &Path| {
        let mut found: Vec<PathBuf> = fs::read_dir(at)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        found.sort();
        found
    };
    let classes = inside(&root).into_iter().filter(|path| path.is_dir());
    classes
        .flat_map(|class| inside(&class))
        .filter(|path| path.extension().is_some_and(|e| e == "yaml"))
        .map(Attack::read)
        .collect()
}

/// What each namespace may ask for: values of the chart, as the cluster of `e2e/kind` has them too.
fn bounds() -> Bounds {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../e2e/attacks/bounds.yaml");
    let values: Value = serde_yaml::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    serde_json::from_value(values["bounds"].clone()).unwrap()
}

fn settings() -> Settings {
    Settings {
        bounds: bounds(),
        image: "penstock:0.1.0".to_owned(),
        own_namespace: "penstock".to_owned(),
        ..Settings::default()
    }
}

/// What the controller knows where the webhook is away: an account that nobody lent to jobs is there.
async fn facts(job: &StreamingJob, linter: &Linter) -> Facts {
    let account = json!({"metadata": {"name": "deployer", "labels": {"team": "platform"}}});
    let planned = match judge(None, job, &bounds()).errors.is_empty() {
        true => linter.faults(None, job).await,
        false => Ok(Vec::new()),
    };
    let now = DateTime::from_timestamp(1_800_000_000, 0).unwrap();
    Facts {
        account: (job.spec.workers.service_account_name == "deployer")
            .then(|| serde_json::from_value(account).unwrap()),
        sql_faults: planned.expect("the planner answers"),
        ..Facts::of(job.clone(), now)
    }
}

/// The message of Stalled, where the job stands still and nothing is made for it.
fn stalled(decision: &Decision) -> Option<String> {
    let conditions = &decision.status.conditions;
    let stalled = conditions.iter().find(|c| c.type_ == "Stalled")?;
    let nothing = decision.apply.is_empty() && decision.certificate.is_none();
    (stalled.status == "True" && stalled.reason == "Invalid" && nothing)
        .then(|| stalled.message.clone())
}

/// The webhook's faults as the controller tells them.
fn as_status(errors: &[String]) -> String {
    const SHOWN: usize = 5;
    let mut shown: Vec<String> = errors.iter().take(SHOWN).cloned().collect();
    if errors.len() > SHOWN {
        shown.push(format!("and {} more", errors.len() - SHOWN));
    }
    bounded(&shown.join("; "))
}

#[tokio::test]
async fn every_attack_is_stopped_by_the_check_that_it_names() {
    let linter = Linter::new(planner::program());
    let attacks = attacks();
    assert!(attacks.len() >= 40, "{} attacks", attacks.len());
    let mut wrong = Vec::new();
    for attack in &attacks {
        if let Err(why) = attempt(attack, &linter).await {
            wrong.push(format!("{}: {why}", attack.path.display()));
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {}:\n{}",
        wrong.len(),
        attacks.len(),
        wrong.join("\n")
    );
}

async fn attempt(attack: &Attack, linter: &Linter) -> Result<(), String> {
    let object = attack.object();
    let by = Judge {
        linter: linter.clone(),
        bounds: bounds(),
    };
    let on = verdict(&by, &json!({"object": object})).await;
    let job = match (unreadable::read(&object), attack.stop) {
        (Err(why), Stop::Unread) => return not_read(attack, &object, &why, &on.errors),
        // Nothing can be sent past a bound of the schema.
        (Err(_), Stop::Schema) => return by_schema(attack, Ok(())),
        (Err(why), _) => return Err(why),
        (Ok(_), Stop::Unread) => return Err("it can be read".to_owned()),
        (Ok(job), _) => job,
    };
    let off = decide(&facts(&job, linter).await, &settings());
    let told = stalled(&off);
    let both = || match (&told, on.errors.is_empty()) {
        (Some(message), false) if *message == as_status(&on.errors) => Ok(()),
        _ => Err(format!(
            "the webhook: {:?}, the controller: {told:?}",
            on.errors
        )),
    };
    let late = on
        .warnings
        .iter()
        .any(|w| w.starts_with("spec.sql: it was not planned"));
    match attack.stop {
        Stop::Schema if on.errors.is_empty() => by_schema(attack, confined(attack, &job, &off)),
        Stop::Schema => by_schema(attack, both()),
        // A review has less time than the controller, which tells then.
        Stop::Planner if late => match told {
            Some(message) => attack.expect(&[message]),
            None => Err("the controller lets it pass".to_owned()),
        },
        Stop::Rules | Stop::Planner => {
            let by_rules = !judge(None, &job, &bounds()).errors.is_empty();
            if by_rules != (attack.stop == Stop::Rules) {
                return Err(format!("not by {:?}: {:?}", attack.stop, on.errors));
            }
            both()?;
            attack.expect(&on.errors)
        }
        Stop::Controller | Stop::Harmless if !on.errors.is_empty() => {
            Err(format!("the webhook: {:?}", on.errors))
        }
        Stop::Controller => match told {
            Some(message) => attack.expect(&[message]),
            None => Err("the controller lets it pass".to_owned()),
        },
        Stop::Harmless => confined(attack, &job, &off),
        Stop::Unread => unreachable!("judged above"),
    }
}

/// Both tell of it, the controller in the job's status.
fn not_read(attack: &Attack, object: &Value, why: &str, errors: &[String]) -> Result<(), String> {
    let now = DateTime::from_timestamp(1_800_000_000, 0).unwrap();
    let status = unreadable::status(object, why, now).ok_or("nothing is told")?;
    let conditions = status["conditions"].as_array().ok_or("no conditions")?;
    let stalled = conditions.iter().find(|c| c["type"] == "Stalled");
    let message = stalled.map(|c| c["message"].clone()).unwrap_or_default();
    if errors.len() != 1 || message != errors[0] {
        return Err(format!(
            "the webhook: {errors:?}, the controller: {message}"
        ));
    }
    attack.expect(errors)
}

/// The schema has no such field or value, and `rest` is what becomes of it where the API server cuts it off.
fn by_schema(attack: &Attack, rest: Result<(), String>) -> Result<(), String> {
    const BY_SCHEMA: [&str; 6] = ["PS0007", "PS0008", "PS0010", "PS0011", "PS0015", "PS0016"];
    let faults = load_for(&attack.text, "job.yaml", Place::Cluster);
    let faults = faults.err().unwrap_or_default();
    let said: Vec<String> = faults
        .iter()
        .filter(|f| BY_SCHEMA.contains(&f.code.as_str()))
        .map(|f| format!("{}: {} [{}]", f.path, f.message, f.code))
        .collect();
    if said.is_empty() {
        return Err("the schema lets it pass".to_owned());
    }
    attack.expect(&said)?;
    rest.map_err(|why| format!("beyond the schema: {why}"))
}

/// The children are those of any job.
fn confined(attack: &Attack, job: &StreamingJob, decision: &Decision) -> Result<(), String> {
    let Some(set) = decision.apply.last() else {
        return Err(format!("nothing is made: {:?}", decision.status.conditions));
    };
    for child in &decision.apply {
        own(child)?;
    }
    pod(job, &set.body["spec"]["template"])?;
    let map = decision
        .apply
        .iter()
        .find(|c| c.body["kind"] == "ConfigMap");
    rendered(job, &map.ok_or("no ConfigMap")?.body)?;
    match attack.head.get("text") {
        Some(text) => data_only(&decision.apply, text),
        None => Ok(()),
    }
}

/// In the namespace of the job, owned by it, and found by its labels alone.
fn own(child: &Child) -> Result<(), String> {
    let metadata = &child.body["metadata"];
    let owners = metadata["ownerReferences"].as_array().ok_or("no owner")?;
    let labels = &metadata["labels"];
    let sound = metadata["namespace"] == NAMESPACE
        && owners.len() == 1
        && owners[0]["uid"] == UID
        && labels["penstock.dev/job"] == owners[0]["name"]
        && labels["app.kubernetes.io/managed-by"] == "penstock-operator"
        && metadata.get("finalizers").is_none();
    match sound {
        true => Ok(()),
        false => Err(format!("{} {}: {metadata}", child.body["kind"], child.name)),
    }
}

/// Members of a pod's spec that the controller writes; none of them reaches the node.
const MEMBERS: [&str; 13] = [
    "affinity",
    "automountServiceAccountToken",
    "containers",
    "enableServiceLinks",
    "imagePullSecrets",
    "nodeSelector",
    "priorityClassName",
    "securityContext",
    "serviceAccountName",
    "terminationGracePeriodSeconds",
    "tolerations",
    "topologySpreadConstraints",
    "volumes",
];

/// Volumes that hold objects of the namespace or nothing.
const VOLUMES: [&str; 5] = [
    "configMap",
    "secret",
    "emptyDir",
    "projected",
    "persistentVolumeClaim",
];

/// Nothing but a worker, with its own identity and the Secrets that the manifest names.
fn pod(job: &StreamingJob, template: &Value) -> Result<(), String> {
    let name = job.metadata.name.as_deref().unwrap_or_default();
    let spec = &template["spec"];
    let container = &spec["containers"][0];
    let is = |holds: bool, what: &str| match holds {
        true => Ok(()),
        false => Err(format!("{what}: {template}")),
    };
    let members = spec.as_object().ok_or("no pod")?;
    is(
        members.keys().all(|m| MEMBERS.contains(&m.as_str())),
        "members",
    )?;
    let containers = spec["containers"].as_array().ok_or("no containers")?;
    is(containers.len() == 1, "containers")?;
    is(container["command"] == json!(["penstock"]), "command")?;
    is(container["image"] == "penstock:0.1.0", "image")?;
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '/' | ':');
    let args = container["args"].as_array().ok_or("no arguments")?;
    // Its own, of which nothing is the manifest's.
    let own = [
        format!("{name}-worker-{{}}.{name}-worker.tenant.svc"),
        "$(PENSTOCK_POD)".to_owned(),
    ];
    let plain = |arg: &Value| {
        let text = arg.as_str();
        text.is_some_and(|a| a.chars().all(plain) || own.iter().any(|o| o == a))
    };
    is(args.iter().all(plain), "arguments")?;
    is(
        spec["serviceAccountName"] == format!("{name}-worker"),
        "account",
    )?;
    is(spec["automountServiceAccountToken"] == false, "token")?;
    is(spec["securityContext"]["runAsNonRoot"] == true, "user")?;
    let context = json!({
        "allowPrivilegeEscalation": false,
        "readOnlyRootFilesystem": true,
        "capabilities": {"drop": ["ALL"]},
    });
    is(container["securityContext"] == context, "context")?;
    let asked = json!(job.spec).to_string();
    for volume in spec["volumes"].as_array().ok_or("no volumes")? {
        let members = volume.as_object().ok_or("no volume")?;
        let known = |m: &String| m == "name" || VOLUMES.contains(&m.as_str());
        is(members.keys().all(known), "volume")?;
        if let Some(secret) = volume["secret"]["secretName"].as_str() {
            let own = secret.starts_with(&format!("{name}-c-"));
            is(own || asked.contains(&format!("\"{secret}\"")), "secret")?;
        }
    }
    let labels = &template["metadata"]["labels"];
    let own = labels["penstock.dev/job"] == name && labels["app.kubernetes.io/instance"] == name;
    is(own, "labels")
}

/// The ConfigMap holds the job and the template, each whole.
fn rendered(job: &StreamingJob, map: &Value) -> Result<(), String> {
    let data = map["data"].as_object().ok_or("no data")?;
    let names: Vec<&String> = data.keys().collect();
    if names != ["job.yaml", "template.json"] {
        return Err(format!("data: {names:?}"));
    }
    let text = data["job.yaml"].as_str().unwrap_or_default();
    let read: StreamingJob = serde_yaml::from_str(text).map_err(|e| format!("job.yaml: {e}"))?;
    let template = data["template.json"].as_str().unwrap_or_default();
    let template: Value =
        serde_json::from_str(template).map_err(|e| format!("template.json: {e}"))?;
    let same = read.spec.sql == job.spec.sql
        && read.spec.sources == job.spec.sources
        && read.spec.sinks == job.spec.sinks
        && read.spec.checkpoint == job.spec.checkpoint
        && read.metadata.name == job.metadata.name
        && read.metadata.namespace.as_deref() == Some(NAMESPACE)
        && template["spec"]["containers"][0]["name"] == "worker";
    match same {
        true => Ok(()),
        false => Err(format!("another job was rendered: {text}")),
    }
}

/// Where a text of the manifest may stand.
const DATA: [&str; 4] = [
    "/data/job.yaml",
    "/data/template.json",
    "/spec/template/metadata/annotations/",
    "/spec/template/spec/containers/0/env/0/value",
];

fn data_only(children: &[Child], text: &str) -> Result<(), String> {
    let mut seen = Vec::new();
    for child in children {
        places(&child.body, text, String::new(), &mut seen);
    }
    let data = |at: &&String| !DATA.iter().any(|data| at.starts_with(data));
    let elsewhere: Vec<&String> = seen.iter().filter(data).collect();
    match (seen.is_empty(), elsewhere.is_empty()) {
        (true, _) => Err(format!("{text} is nowhere")),
        (false, false) => Err(format!("{text} is at {elsewhere:?}")),
        (false, true) => Ok(()),
    }
}

/// Every place whose name or value has the text.
fn places(of: &Value, text: &str, at: String, seen: &mut Vec<String>) {
    match of {
        Value::String(value) if value.contains(text) => seen.push(at),
        Value::Array(items) => {
            for (i, item) in items.iter().enumerate() {
                places(item, text, format!("{at}/{i}"), seen);
            }
        }
        Value::Object(members) => {
            for (name, value) in members {
                if name.contains(text) {
                    seen.push(format!("{at}/(name)"));
                }
                places(value, text, format!("{at}/{name}"), seen);
            }
        }
        Value::String(_) | Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}
