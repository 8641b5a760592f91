//! What is answered is what the model says.

use chat_client::{ChatMessage, FinishReason};
use lmm_hooks::{GenerationOptions, Hooks, Sampling};
use serde_json::{Value, json};
use shapes_world::CAPTION_REQUEST;
use tch::Kind;

use crate::server::{MODEL, Reference, Server, batch, chat_request, request, scene, text};

fn wait<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap().block_on(future)
}

/// 30 questions at once, with pictures of several sizes and prompts of several lengths, are answered as one by one.
#[test]
fn many_at_once_each_get_what_the_model_says_alone() {
    let server = Server::start(&["--max-batch", "7"], None);
    let reference = Reference::load();
    let mut asked = Vec::new();
    for index in 0..8 {
        let (image, questions) = scene(index);
        asked.extend(questions.into_iter().take(4).map(|question| (vec![image.clone()], question)));
        asked.push((vec![image], CAPTION_REQUEST.to_owned()));
    }
    asked.truncate(30);
    let client = server.client();
    let replies = wait(async {
        let calls: Vec<_> = asked
            .iter()
            .map(|(images, question)| {
                let (client, request) = (client.clone(), chat_request(images, question));
                tokio::spawn(async move { client.complete(&request).await.unwrap() })
            })
            .collect();
        let mut replies = Vec::new();
        for call in calls {
            replies.push(call.await.unwrap());
        }
        replies
    });
    let (mut prompts, mut completions) = (0, 0);
    for ((images, question), reply) in asked.iter().zip(replies) {
        let tokens = reference.tokens(images, question, &GenerationOptions::greedy(32, vec![2]));
        assert_eq!(reply.text, reference.text(&tokens), "{question}");
        let ended = tokens.last() == Some(&2);
        assert_eq!(reply.finish_reason == FinishReason::Stop, ended, "{question}");
        let prompt = reference.inputs(images, question).input_ids.len();
        assert_eq!(
            (reply.usage.prompt_tokens, reply.usage.completion_tokens),
            (prompt as u64, tokens.len() as u64)
        );
        (prompts, completions) = (prompts + prompt as u64, completions + tokens.len() as u64);
    }
    assert_eq!(server.metric("lmm_serve_requests_total{outcome=\"answered\"}"), 30);
    assert_eq!(server.metric("lmm_serve_prompt_tokens_total"), prompts);
    assert_eq!(server.metric("lmm_serve_completion_tokens_total"), completions);
    assert!(server.metric("lmm_serve_batches_total") >= 5);
    assert_eq!(server.get("/health").status, 200);
    assert_eq!(wait(client.models()).unwrap(), [MODEL]);
    assert_eq!(server.get(&format!("/v1/models/{MODEL}")).json()["id"], MODEL);
    assert_eq!(server.get("/v1/models/other").status, 404);
}

#[test]
fn conversations_with_several_images_and_no_image() {
    let server = Server::start(&[], None);
    let reference = Reference::load();
    let [(first, questions), (second, _)] = [scene(1), scene(2)];
    let images = [first, second];
    let answer = server.post(&request(&images, &questions[0]));
    assert_eq!(text(&answer), reference.answer(&images, &questions[0]));
    let expected = reference.inputs(&images, &questions[0]).input_ids.len();
    assert_eq!(answer.json()["usage"]["prompt_tokens"], expected);
    // The other order is another prompt.
    let swapped = [images[1].clone(), images[0].clone()];
    assert_eq!(
        text(&server.post(&request(&swapped, &questions[0]))),
        reference.answer(&swapped, &questions[0])
    );
    // Words alone, as a plain string, which this model's template would take as a list only.
    let plain =
        json!({"model": MODEL, "messages": [{"role": "user", "content": "what colour is the ring ?"}]});
    assert_eq!(text(&server.post(&plain)), reference.answer(&[], "what colour is the ring ?"));
    // Earlier turns count.
    let mut turns = chat_request(&images[..1], &questions[0]);
    let short = wait(server.client().complete(&turns)).unwrap();
    turns.messages.push(ChatMessage::assistant(short.text.as_str()));
    turns.messages.push(ChatMessage::user("how many shapes are there ?"));
    turns.messages.insert(0, ChatMessage::system("describe"));
    let long = wait(server.client().complete(&turns)).unwrap();
    assert!(long.usage.prompt_tokens > short.usage.prompt_tokens + 7, "{long:?}");
}

#[test]
fn a_stream_holds_the_same_words_and_ends_as_clients_expect() {
    let server = Server::start(&[], None);
    let (image, questions) = scene(3);
    for question in [questions[0].as_str(), CAPTION_REQUEST] {
        let mut body = request(std::slice::from_ref(&image), question);
        (body["logprobs"], body["top_logprobs"]) = (json!(true), json!(2));
        let whole = server.post(&body);
        let expected = text(&whole);
        body["stream"] = json!(true);
        body["stream_options"] = json!({"include_usage": true});
        let events = server.post(&body).events();
        assert_eq!(events[0]["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
        let choices = events.iter().filter_map(|event| event["choices"].get(0));
        let pieces: Vec<&str> =
            choices.clone().filter_map(|choice| choice["delta"]["content"].as_str()).collect();
        assert_eq!(pieces.concat(), expected);
        assert!(question != CAPTION_REQUEST || pieces.len() > 3, "{pieces:?}");
        let [.., last, usage] = &events[..] else { panic!("{events:?}") };
        assert_eq!(last["choices"][0]["finish_reason"], whole.json()["choices"][0]["finish_reason"]);
        assert_eq!((&usage["choices"], &usage["usage"]), (&json!([]), &whole.json()["usage"]));
        let logged: Vec<Value> = choices
            .filter_map(|choice| choice["logprobs"]["content"].as_array().cloned())
            .flatten()
            .collect();
        assert_eq!(json!(logged), whole.json()["choices"][0]["logprobs"]["content"]);
        assert!(events.iter().all(|event| event["id"] == events[0]["id"]));
    }
}

#[test]
fn log_probabilities_are_those_of_the_model() {
    let server = Server::start(&[], None);
    let reference = Reference::load();
    let (image, _) = scene(4);
    let images = [image];
    let mut body = request(&images, CAPTION_REQUEST);
    (body["logprobs"], body["top_logprobs"]) = (json!(true), json!(3));
    let answer = server.post(&body);
    let content = answer.json()["choices"][0]["logprobs"]["content"].as_array().unwrap().clone();
    let joined: String = content.iter().map(|token| token["token"].as_str().unwrap()).collect();
    assert_eq!(joined, text(&answer));
    let mut inputs = reference.inputs(&images, CAPTION_REQUEST);
    let start = inputs.input_ids.len();
    let tokens = reference.tokens(&images, CAPTION_REQUEST, &GenerationOptions::greedy(32, vec![2]));
    inputs.input_ids.extend(&tokens);
    inputs.layout.n_tokens = inputs.input_ids.len();
    let logits = reference.network.forward(&batch(&inputs), &mut Hooks::new()).unwrap().logits.unwrap();
    let all = logits.get(0).log_softmax(-1, Kind::Double);
    let words = tokens.iter().take_while(|&&id| id != 2).count();
    assert_eq!(content.len(), words, "the ending token has no text");
    let (mut sum, mut expected) = (0.0, 0.0);
    for (place, token) in content.iter().enumerate() {
        let own = all.double_value(&[(start + place - 1) as i64, i64::from(tokens[place])]);
        let logprob = token["logprob"].as_f64().unwrap();
        assert!((logprob - own).abs() < 1e-4, "{token}: {own}");
        (sum, expected) = (sum + logprob, expected + own);
        let top = token["top_logprobs"].as_array().unwrap();
        assert_eq!((top.len(), &top[0]["token"], &top[0]["bytes"]), (3, &token["token"], &token["bytes"]));
        assert_eq!(token["bytes"], json!(token["token"].as_str().unwrap().as_bytes()));
    }
    assert!((sum - expected).abs() < 1e-3, "{sum} {expected}");
    // Only those of the tokens chosen.
    body["top_logprobs"] = json!(0);
    let answer = server.post(&body).json();
    assert_eq!(answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"], json!([]));
}

#[test]
fn samples_are_seeded_and_answers_end_where_they_should() {
    let server = Server::start(&["--seed", "9"], None);
    let reference = Reference::load();
    let (image, questions) = scene(5);
    let images = [image];
    let mut body = request(&images, CAPTION_REQUEST);
    (body["temperature"], body["top_p"], body["seed"]) = (json!(1.7), json!(0.95), json!(5));
    let sampling = |seed| Sampling::Sample { temperature: 1.7, top_p: 0.95, top_k: None, seed };
    let said = |seed| {
        let options =
            GenerationOptions { sampling: sampling(seed), ..GenerationOptions::greedy(32, vec![2]) };
        reference.text(&reference.tokens(&images, CAPTION_REQUEST, &options))
    };
    // Three at once: a row of a batch draws what it draws alone.
    let asked = [server.ask(&body), server.ask(&body), server.ask(&body)];
    for stream in asked {
        assert_eq!(text(&crate::http::receive(stream)), said(5));
    }
    // Without a seed, the server's own are counted on.
    body["seed"] = Value::Null;
    assert_eq!([text(&server.post(&body)), text(&server.post(&body))], [said(9), said(10)]);
    body["temperature"] = json!(0);
    let caption = reference.answer(&images, CAPTION_REQUEST);
    assert_eq!(text(&server.post(&body)), caption, "no temperature is greedy");

    let mut body = request(&images, CAPTION_REQUEST);
    body["max_tokens"] = json!(3);
    let short = server.post(&body).json();
    assert_eq!(short["choices"][0]["finish_reason"], "length");
    assert_eq!(short["usage"]["completion_tokens"], 3);
    assert!(caption.starts_with(short["choices"][0]["message"]["content"].as_str().unwrap()));

    let words: Vec<&str> = caption.split(' ').collect();
    let (stop, before) =
        (format!("{} {}", &words[1][1..], words[2]), caption.find(&format!(" {}", words[1])).unwrap() + 2);
    let mut body = request(&images, CAPTION_REQUEST);
    (body["stop"], body["logprobs"]) = (json!(["never", stop]), json!(true));
    let stopped = server.post(&body).json();
    assert_eq!(stopped["choices"][0]["message"]["content"], caption[..before], "{stop:?} in {caption:?}");
    assert_eq!(stopped["choices"][0]["finish_reason"], "stop");
    assert_eq!(stopped["choices"][0]["logprobs"]["content"].as_array().unwrap().len(), 2, "{stopped}");
    body["stream"] = json!(true);
    let events = server.post(&body).events();
    let pieces: Vec<&str> =
        events.iter().filter_map(|e| e["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(pieces.concat(), caption[..before]);

    // What does not fit into the model's 1024 positions is cut.
    let mut body = request(&images, &questions[0]);
    body["max_tokens"] = json!(100_000);
    assert_eq!(text(&server.post(&body)), reference.answer(&images, &questions[0]));
}
