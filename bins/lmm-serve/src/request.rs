//! [`ChatRequest`]: what a client asks, checked member by member.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::problem::Problem;

/// How many stop texts a request may have, as with OpenAI.
const MAX_STOPS: usize = 4;
/// How many of the likeliest tokens a request may ask for, as with OpenAI.
const MAX_TOP_LOGPROBS: usize = 20;

/// What a client asks. Members that are `None` are the model's and the server's to choose.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ChatRequest {
    pub(crate) model: String,
    pub(crate) messages: Vec<Turn>,
    pub(crate) temperature: Option<f64>,
    pub(crate) top_p: Option<f64>,
    pub(crate) max_tokens: Option<usize>,
    pub(crate) stop: Vec<String>,
    pub(crate) seed: Option<u64>,
    /// How many of the likeliest tokens to give; `None` for no log-probabilities at all.
    pub(crate) logprobs: Option<usize>,
    pub(crate) delivery: Delivery,
    /// Feature, as `[HOOK:]FEATURE`, and the value it is held at.
    pub(crate) steer: Option<BTreeMap<String, f32>>,
}

/// How an answer is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Delivery {
    /// When it is complete.
    Whole,
    /// As it is written.
    Stream {
        /// End with what it took.
        usage: bool,
    },
}

/// One turn of the conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Turn {
    pub(crate) role: String,
    pub(crate) parts: Vec<Part>,
}

/// Words or a picture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Text(String),
    /// A URL, and where in the request it stands.
    Image {
        url: String,
        param: String,
    },
}

/// The members of a JSON object, taken one by one.
struct Members {
    map: Map<String, Value>,
    /// Before each name in errors.
    prefix: String,
}

impl Members {
    fn name(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// A member; absent and `null` are `None`.
    fn take<T: DeserializeOwned>(&mut self, name: &str) -> Result<Option<T>, Problem> {
        match self.map.remove(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => serde_json::from_value(value).map(Some).map_err(|error| {
                let name = self.name(name);
                Problem::of(&name, format!("{name}: {error}"))
            }),
        }
    }

    fn require<T: DeserializeOwned>(&mut self, name: &str) -> Result<T, Problem> {
        let missing = || Problem::of(self.name(name), format!("{} is missing", self.name(name)));
        let missing = missing();
        self.take(name)?.ok_or(missing)
    }

    /// An error for a member that this server does not have, unless `is_default` says that it changes nothing.
    fn refuse(&mut self, name: &str, is_default: impl Fn(&Value) -> bool) -> Result<(), Problem> {
        match self.map.remove(name) {
            None | Some(Value::Null) => Ok(()),
            Some(value) if is_default(&value) => Ok(()),
            Some(_) => Err(Problem::of(self.name(name), format!("{name} is not supported by this server"))),
        }
    }
}

impl ChatRequest {
    /// Reads a request's body. Members it does not know are left alone.
    ///
    /// # Errors
    /// 400 with the member at fault.
    pub(crate) fn parse(body: &[u8], max_images: usize) -> Result<Self, Problem> {
        let value: Value = serde_json::from_slice(body)
            .map_err(|error| Problem::bad(format!("the body is no JSON: {error}")))?;
        let Value::Object(map) = value else {
            return Err(Problem::bad("the body is no JSON object"));
        };
        let mut members = Members { map, prefix: String::new() };
        let is_zero = |value: &Value| value.as_f64() == Some(0.0);
        let is_empty = |value: &Value| {
            value.as_array().is_some_and(Vec::is_empty) || value.as_object().is_some_and(Map::is_empty)
        };
        members.refuse("tools", is_empty)?;
        members.refuse("functions", is_empty)?;
        members.refuse("logit_bias", is_empty)?;
        members.refuse("frequency_penalty", is_zero)?;
        members.refuse("presence_penalty", is_zero)?;
        members.refuse("audio", |_| false)?;
        members.refuse("n", |value| value.as_u64() == Some(1))?;
        members.refuse("response_format", |value| value["type"] == "text")?;
        members.refuse("modalities", |value| *value == serde_json::json!(["text"]))?;
        Ok(Self {
            model: members.require("model")?,
            messages: messages(members.require("messages")?, max_images)?,
            temperature: in_range(&mut members, "temperature", "a number of at least 0", |t| t >= 0.0)?,
            top_p: in_range(&mut members, "top_p", "a number above 0 and at most 1", |p| {
                p > 0.0 && p <= 1.0
            })?,
            max_tokens: max_tokens(&mut members)?,
            stop: stops(&mut members)?,
            seed: members.take::<i128>("seed")?.map(|seed| seed as u64),
            logprobs: logprobs(&mut members)?,
            delivery: delivery(&mut members)?,
            steer: members.take("steer")?,
        })
    }
}

fn in_range(
    members: &mut Members,
    name: &str,
    expected: &str,
    fits: impl Fn(f64) -> bool,
) -> Result<Option<f64>, Problem> {
    match members.take::<f64>(name)? {
        Some(value) if !(value.is_finite() && fits(value)) => {
            Err(Problem::of(name, format!("{name} is {value}, expected {expected}")))
        }
        value => Ok(value),
    }
}

fn max_tokens(members: &mut Members) -> Result<Option<usize>, Problem> {
    let mut limit = None;
    // The newer name wins.
    for name in ["max_tokens", "max_completion_tokens"] {
        if let Some(value) = members.take::<usize>(name)? {
            if value == 0 {
                return Err(Problem::of(name, format!("{name} is 0, expected at least 1")));
            }
            limit = Some(value);
        }
    }
    Ok(limit)
}

fn stops(members: &mut Members) -> Result<Vec<String>, Problem> {
    let stops = match members.take::<Value>("stop")? {
        None => Vec::new(),
        Some(Value::String(stop)) => vec![stop],
        Some(value) => serde_json::from_value(value)
            .map_err(|_| Problem::of("stop", "stop is neither a text nor a list of texts"))?,
    };
    if stops.len() > MAX_STOPS {
        return Err(Problem::of(
            "stop",
            format!("stop has {} texts, at most {MAX_STOPS} are allowed", stops.len()),
        ));
    }
    if stops.iter().any(String::is_empty) {
        return Err(Problem::of("stop", "stop holds an empty text"));
    }
    Ok(stops)
}

fn logprobs(members: &mut Members) -> Result<Option<usize>, Problem> {
    let wanted = members.take::<bool>("logprobs")?.unwrap_or(false);
    let top = members.take::<usize>("top_logprobs")?;
    match top {
        Some(count) if count > MAX_TOP_LOGPROBS => Err(Problem::of(
            "top_logprobs",
            format!("top_logprobs is {count}, at most {MAX_TOP_LOGPROBS} are allowed"),
        )),
        Some(count) if count > 0 && !wanted => {
            Err(Problem::of("top_logprobs", "top_logprobs needs logprobs to be true"))
        }
        _ => Ok(wanted.then_some(top.unwrap_or(0))),
    }
}

fn delivery(members: &mut Members) -> Result<Delivery, Problem> {
    let stream = members.take::<bool>("stream")?.unwrap_or(false);
    let options = members.take::<Map<String, Value>>("stream_options")?;
    if !stream {
        return match options {
            Some(_) => Err(Problem::of("stream_options", "stream_options needs stream to be true")),
            None => Ok(Delivery::Whole),
        };
    }
    let mut options = Members { map: options.unwrap_or_default(), prefix: "stream_options.".to_owned() };
    Ok(Delivery::Stream { usage: options.take::<bool>("include_usage")?.unwrap_or(false) })
}

fn messages(values: Vec<Map<String, Value>>, max_images: usize) -> Result<Vec<Turn>, Problem> {
    if values.is_empty() {
        return Err(Problem::of("messages", "messages is empty"));
    }
    let turn = |(index, map)| {
        let mut members = Members { map, prefix: format!("messages[{index}].") };
        let role: String = members.require("role")?;
        // OpenAI's newer name of the same.
        let role = if role == "developer" { "system".to_owned() } else { role };
        if !matches!(role.as_str(), "system" | "user" | "assistant") {
            let name = members.name("role");
            return Err(Problem::of(
                &name,
                format!("{name} is {role:?}, expected system, user or assistant"),
            ));
        }
        let name = members.name("content");
        let parts = match members.require::<Value>("content")? {
            Value::String(text) => vec![Part::Text(text)],
            Value::Array(parts) => {
                parts.into_iter().enumerate().map(|indexed| part(&name, indexed)).collect::<Result<_, _>>()?
            }
            _ => return Err(Problem::of(&name, format!("{name} is neither a text nor a list of parts"))),
        };
        Ok(Turn { role, parts })
    };
    let turns: Vec<Turn> = values.into_iter().enumerate().map(turn).collect::<Result<_, Problem>>()?;
    let parts = turns.iter().flat_map(|turn| &turn.parts);
    let images = parts.filter(|part| matches!(part, Part::Image { .. })).count();
    if images > max_images {
        let message = format!("the messages hold {images} images, at most {max_images} are allowed");
        return Err(Problem::of("messages", message));
    }
    Ok(turns)
}

fn part(content: &str, (index, value): (usize, Value)) -> Result<Part, Problem> {
    let name = format!("{content}[{index}]");
    let Value::Object(map) = value else {
        return Err(Problem::of(
            &name,
            format!("{name} is no part such as {{\"type\": \"text\", \"text\": ...}}"),
        ));
    };
    let mut members = Members { map, prefix: format!("{name}.") };
    match members.require::<String>("type")?.as_str() {
        "text" => Ok(Part::Text(members.require("text")?)),
        "image_url" => {
            let map = members.require("image_url")?;
            let mut image = Members { map, prefix: format!("{name}.image_url.") };
            Ok(Part::Image { url: image.require("url")?, param: image.name("url") })
        }
        other => Err(Problem::of(
            members.name("type"),
            format!("{name} is of type {other:?}, expected text or image_url"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(change: impl FnOnce(&mut Value)) -> Result<ChatRequest, Problem> {
        let mut body = json!({"model": "m", "messages": [{"role": "user", "content": "hi"}]});
        change(&mut body);
        ChatRequest::parse(body.to_string().as_bytes(), 2)
    }

    fn with(name: &str, value: Value) -> Result<ChatRequest, Problem> {
        parse(|body| body[name] = value)
    }

    #[test]
    fn everything_heeded() {
        let request = parse(|body| {
            *body = json!({
                "model": "m", "temperature": 0.5, "top_p": 0.9, "max_tokens": 7, "max_completion_tokens": 9,
                "stop": ["a", "b"], "seed": -1, "logprobs": true, "top_logprobs": 3, "stream": true,
                "stream_options": {"include_usage": true}, "steer": {"model.layers.2:17": 8, "3": -0.5},
                "n": 1, "user": "somebody", "metadata": {}, "frequency_penalty": 0.0, "presence_penalty": null,
                "response_format": {"type": "text"}, "tools": [], "logit_bias": {},
                "messages": [
                    {"role": "developer", "content": "Be brief."},
                    {"role": "user", "content": [
                        {"type": "image_url", "image_url": {"url": "data:x", "detail": "high"}},
                        {"type": "text", "text": "What?"},
                    ]},
                    {"role": "assistant", "content": "", "refusal": null},
                ],
            });
        });
        let image =
            Part::Image { url: "data:x".into(), param: "messages[1].content[0].image_url.url".into() };
        let want = ChatRequest {
            model: "m".into(),
            messages: vec![
                Turn { role: "system".into(), parts: vec![Part::Text("Be brief.".into())] },
                Turn { role: "user".into(), parts: vec![image, Part::Text("What?".into())] },
                Turn { role: "assistant".into(), parts: vec![Part::Text(String::new())] },
            ],
            temperature: Some(0.5),
            top_p: Some(0.9),
            max_tokens: Some(9),
            stop: vec!["a".into(), "b".into()],
            seed: Some(u64::MAX),
            logprobs: Some(3),
            delivery: Delivery::Stream { usage: true },
            steer: Some(BTreeMap::from([("model.layers.2:17".into(), 8.0), ("3".into(), -0.5)])),
        };
        assert_eq!(request.unwrap(), want);
        let plain = parse(|_| ()).unwrap();
        assert_eq!((plain.delivery, plain.logprobs, plain.steer), (Delivery::Whole, None, None));
        assert_eq!(with("stop", json!("x")).unwrap().stop, ["x"]);
        assert_eq!(with("top_logprobs", json!(0)).unwrap().logprobs, None);
        assert_eq!(with("seed", json!(u64::MAX)).unwrap().seed, Some(u64::MAX));
    }

    #[test]
    fn what_is_at_fault_is_named() {
        for (name, value) in [
            ("temperature", json!(-0.1)),
            ("temperature", json!("hot")),
            ("top_p", json!(0)),
            ("top_p", json!(1.5)),
            ("max_tokens", json!(0)),
            ("max_completion_tokens", json!(-3)),
            ("stop", json!(["a", "b", "c", "d", "e"])),
            ("stop", json!([""])),
            ("stop", json!(7)),
            ("seed", json!(1.5)),
            ("logprobs", json!(3)),
            ("top_logprobs", json!(5)),
            ("stream", json!("yes")),
            ("stream_options", json!({})),
            ("steer", json!({"3": "much"})),
            ("n", json!(2)),
            ("tools", json!([{"type": "function"}])),
            ("response_format", json!({"type": "json_object"})),
            ("frequency_penalty", json!(0.5)),
            ("presence_penalty", json!(-1)),
            ("logit_bias", json!({"1": 5})),
            ("modalities", json!(["text", "audio"])),
            ("model", json!(null)),
            ("messages", json!([])),
            ("messages", json!("hi")),
        ] {
            let problem = with(name, value.clone()).unwrap_err();
            assert_eq!(problem.param.as_deref(), Some(name), "{value}: {}", problem.message);
            assert!(problem.message.contains(name), "{}", problem.message);
        }
        let too_many = parse(|body| (body["logprobs"], body["top_logprobs"]) = (json!(true), json!(21)));
        assert_eq!(too_many.unwrap_err().param.as_deref(), Some("top_logprobs"));
        for (message, param) in [
            (json!({"content": "x"}), "messages[0].role"),
            (json!({"role": "tool", "content": "x"}), "messages[0].role"),
            (json!({"role": "user"}), "messages[0].content"),
            (json!({"role": "user", "content": 3}), "messages[0].content"),
            (json!({"role": "user", "content": ["x"]}), "messages[0].content[0]"),
            (json!({"role": "user", "content": [{"type": "audio"}]}), "messages[0].content[0].type"),
            (json!({"role": "user", "content": [{"type": "text"}]}), "messages[0].content[0].text"),
            (
                json!({"role": "user", "content": [{"type": "image_url", "image_url": {}}]}),
                "messages[0].content[0].image_url.url",
            ),
        ] {
            let problem = with("messages", json!([message])).unwrap_err();
            assert_eq!(problem.param.as_deref(), Some(param), "{}", problem.message);
        }
        let image = json!({"type": "image_url", "image_url": {"url": "data:x"}});
        let turn = |images: usize| json!({"role": "user", "content": vec![image.clone(); images]});
        assert!(with("messages", json!([turn(1), turn(1)])).is_ok());
        let many = with("messages", json!([turn(1), turn(2)])).unwrap_err();
        assert!(many.message.contains("3 images, at most 2"), "{}", many.message);
        for body in ["", "{", "[]", "3", "{\"model\": \"m\"} x"] {
            assert!(ChatRequest::parse(body.as_bytes(), 2).unwrap_err().message.contains("JSON"), "{body}");
        }
    }
}
