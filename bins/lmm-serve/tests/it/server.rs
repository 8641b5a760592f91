//! A running server, and what the model in it says without one.

use std::io::{BufRead, BufReader, Cursor};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use chat_client::{ApiKey, ChatClient, ChatMessage, ChatRequest, ClientOptions, RetryPolicy};
use image::RgbImage;
use lmm_hooks::{Batch, GenerationOptions, Hooks, LlavaNext, LoadOptions, PaddingSide};
use lmm_prep::{ChatOptions, Inputs, Message, Part, Processor};
use sae_core::{Sae, SaeConfig, SaeTensors, WeightDtype};
use serde_json::{Value, json};
use shapes_world::Scene;
use tch::{Device, Kind};

use crate::http::{self, Response};

/// What the served model is called.
pub(crate) const MODEL: &str = "shapes-lmm-s";

pub(crate) fn model_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets").join(MODEL)
}

/// The binary, listening on a port of its own. Killed when dropped.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) child: Child,
    /// `http://127.0.0.1:PORT/v1`.
    pub(crate) url: String,
    /// `127.0.0.1:PORT`.
    pub(crate) address: String,
}

impl Server {
    pub(crate) fn start(flags: &[&str], key: Option<&str>) -> Self {
        Self::start_with(&model_folder(), flags, key)
    }

    pub(crate) fn start_with(model: &Path, flags: &[&str], key: Option<&str>) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lmm-serve"));
        for variable in ["RANK", "WORLD_SIZE", "RUST_LOG", "LMM_SERVE_API_KEY"] {
            command.env_remove(variable);
        }
        // Several servers and models compute at once in these tests: more threads would wait for each other.
        command.env("OMP_NUM_THREADS", "1");
        if let Some(key) = key {
            command.env("LMM_SERVE_API_KEY", key);
        }
        command.arg(model).args(["--port", "0", "-q"]).args(flags);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut url = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut url).unwrap();
        let url = url.trim().to_owned();
        let address =
            url.strip_prefix("http://").and_then(|rest| rest.strip_suffix("/v1")).unwrap().to_owned();
        Self { child, url, address }
    }

    pub(crate) fn client(&self) -> ChatClient {
        self.client_with(None)
    }

    pub(crate) fn client_with(&self, key: Option<&str>) -> ChatClient {
        let wait = Duration::from_millis(100);
        ChatClient::new(ClientOptions {
            key: key.and_then(ApiKey::new),
            retry: RetryPolicy { attempts: 300, first_wait: wait, longest_wait: wait },
            max_concurrent: 32.try_into().unwrap(),
            ..ClientOptions::new(&self.url)
        })
        .unwrap()
    }

    pub(crate) fn get(&self, path: &str) -> Response {
        http::receive(http::send(&self.address, "GET", path, &[], b""))
    }

    /// Asks and waits for the answer.
    pub(crate) fn post(&self, body: &Value) -> Response {
        http::receive(self.ask(body))
    }

    /// Asks; the answer is on its way.
    pub(crate) fn ask(&self, body: &Value) -> std::net::TcpStream {
        http::send(&self.address, "POST", "/v1/chat/completions", &[], body.to_string().as_bytes())
    }

    /// A number of `/metrics`.
    pub(crate) fn metric(&self, name: &str) -> u64 {
        let text = self.get("/metrics").body;
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')).unwrap();
        line.parse().unwrap()
    }

    /// Waits until a number of `/metrics` is as wanted.
    #[track_caller]
    pub(crate) fn wait_for(&self, name: &str, wanted: impl Fn(u64) -> bool) {
        let start = Instant::now();
        while !wanted(self.metric(name)) {
            assert!(start.elapsed() < Duration::from_mins(3), "{name} is {}", self.metric(name));
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn png(image: &RgbImage) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    image.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
    bytes.into_inner()
}

/// A part of a message that shows an image.
pub(crate) fn image_part(image: &RgbImage) -> Value {
    let url = format!("data:image/png;base64,{}", STANDARD.encode(png(image)));
    json!({"type": "image_url", "image_url": {"url": url}})
}

/// A greedy request about some images.
pub(crate) fn request(images: &[RgbImage], question: &str) -> Value {
    let mut parts: Vec<Value> = images.iter().map(image_part).collect();
    parts.push(json!({"type": "text", "text": question}));
    json!({"model": MODEL, "messages": [{"role": "user", "content": parts}]})
}

/// The same for `chat-client`.
pub(crate) fn chat_request(images: &[RgbImage], question: &str) -> ChatRequest {
    let mut message = ChatMessage { content: Vec::new(), ..ChatMessage::user("") };
    for image in images {
        message = message.with_image(chat_client::Image::new("image/png", png(image)));
    }
    ChatRequest::new(MODEL, [message.with_text(question)])
}

pub(crate) fn scene(index: u64) -> (RgbImage, Vec<String>) {
    let scene = Scene::generate(77, index);
    let questions = scene.questions().into_iter().map(|question| question.text).collect();
    (scene.render(), questions)
}

/// The text of a whole answer.
#[track_caller]
pub(crate) fn text(response: &Response) -> String {
    assert_eq!(response.status, 200, "{}", response.body);
    response.json()["choices"][0]["message"]["content"].as_str().unwrap().to_owned()
}

pub(crate) fn batch(inputs: &Inputs) -> Batch {
    Batch::new(&[inputs], 0, Device::Cpu, Kind::Float, PaddingSide::Left).unwrap()
}

/// The model without a server.
pub(crate) struct Reference {
    pub(crate) processor: Processor,
    pub(crate) network: LlavaNext,
}

impl Reference {
    pub(crate) fn load() -> Self {
        tch::set_num_threads(1);
        let folder = model_folder();
        let network = LlavaNext::load(&folder, &LoadOptions::default()).unwrap();
        Self { processor: Processor::load(&folder).unwrap(), network }
    }

    pub(crate) fn inputs(&self, images: &[RgbImage], question: &str) -> Inputs {
        let mut parts: Vec<Part> = images.iter().map(|_| Part::Image).collect();
        parts.push(Part::Text { text: question.to_owned() });
        let options = ChatOptions { add_generation_prompt: true };
        self.processor.prepare_chat(&[Message::parts("user", parts)], options, images).unwrap()
    }

    /// The tokens that it answers, the ending one included.
    pub(crate) fn tokens(
        &self,
        images: &[RgbImage],
        question: &str,
        options: &GenerationOptions,
    ) -> Vec<u32> {
        let batch = batch(&self.inputs(images, question));
        self.network.generate(&batch, options, &mut Hooks::new()).unwrap().remove(0)
    }

    pub(crate) fn answer(&self, images: &[RgbImage], question: &str) -> String {
        self.text(&self.tokens(images, question, &GenerationOptions::greedy(32, vec![2])))
    }

    pub(crate) fn text(&self, ids: &[u32]) -> String {
        self.processor.tokenizer().decode(ids, true).unwrap()
    }
}

/// Copies the model, with room for answers so long that no test sees the end of one.
pub(crate) fn copy_with_long_context(folder: &Path) {
    for file in std::fs::read_dir(model_folder()).unwrap() {
        let file = file.unwrap().path();
        std::fs::copy(&file, folder.join(file.file_name().unwrap())).unwrap();
    }
    let path = folder.join("config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    config["text_config"]["max_position_embeddings"] = json!(32_768);
    std::fs::write(path, config.to_string()).unwrap();
}

/// Writes an autoencoder of made-up numbers for layer 2 of the model, 8 features with long decoder rows.
pub(crate) fn write_sae(folder: &Path) {
    const WIDTH: usize = 128;
    const FEATURES: usize = 8;
    let numbers = |step: usize, modulus: usize, scale: f32| -> Vec<f32> {
        let number = |i: usize| ((i * step + (i / WIDTH) * 31) % modulus) as f32 / modulus as f32 - 0.5;
        (0..WIDTH * FEATURES).map(|i| number(i) * scale).collect()
    };
    let tensors = SaeTensors {
        encoder_weight: numbers(7919, 17, 0.2),
        encoder_bias: vec![0.0; FEATURES],
        decoder_weight: numbers(104_729, 23, 2.0),
        decoder_bias: vec![0.0; WIDTH],
        skip_weight: None,
    };
    let mut config = SaeConfig::new(WIDTH, FEATURES, 2);
    config.normalize_decoder = false;
    let sae = Sae::from_parts(config, tensors).unwrap();
    sae.save(&folder.join("model.layers.2"), WeightDtype::F32).unwrap();
}
