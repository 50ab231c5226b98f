//! The loop against a session that follows a script.

use super::*;
use crate::sampler::SamplingParams;

/// Chooses `script[n]` behind n held tokens, by giving it the only high logit.
struct Script {
    held: Vec<i32>,
    script: Vec<i32>,
    capacity: usize,
    row: Vec<f32>,
    fail_at: Option<(usize, Status)>,
}

impl Script {
    fn new(prompt: &[i32], script: &[i32]) -> Self {
        let mut s = Self {
            held: prompt.to_vec(),
            script: script.to_vec(),
            capacity: 1000,
            row: vec![0.0; 300],
            fail_at: None,
        };
        s.script.splice(0..0, prompt.iter().copied());
        s.look();
        s
    }

    fn look(&mut self) {
        self.row.fill(0.0);
        if let Some(&id) = self.script.get(self.held.len()) {
            self.row[id as usize] = 9.0;
        }
    }
}

impl Evaluate for Script {
    fn tokens(&self) -> &[i32] {
        &self.held
    }

    fn logits(&self) -> Result<&[f32]> {
        if self.held.is_empty() {
            return Err(Error::new(Status::BAD_STATE, "nothing held"));
        }
        Ok(&self.row)
    }

    fn decode(&mut self, id: i32, cancel: Option<&Cancel>) -> Result<()> {
        if let Some(cancel) = cancel {
            cancel.check()?;
        }
        if let Some((at, status)) = self.fail_at
            && at == self.held.len()
        {
            return Err(Error::new(status, "scripted"));
        }
        if self.held.len() == self.capacity {
            return Err(Error::new(Status::CONTEXT_FULL, "full"));
        }
        self.held.push(id);
        self.look();
        Ok(())
    }
}

/// Ids are bytes; 256 ends a turn.
#[derive(Default)]
struct Bytes(Vec<u8>);

impl Text for Bytes {
    fn push(&mut self, id: i32) -> Result<String> {
        let Ok(byte) = u8::try_from(id) else {
            return if id < 300 { Ok(String::new()) } else { Err(Error::new(Status::INVALID_ARG, "id")) };
        };
        self.0.push(byte);
        match std::str::from_utf8(&self.0) {
            Ok(text) => {
                let text = text.to_owned();
                self.0.clear();
                Ok(text)
            }
            Err(_) => Ok(String::new()),
        }
    }

    fn finish(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.0)).into_owned()
    }

    fn is_end(&self, id: i32) -> bool {
        id == 256
    }
}

struct Outcome {
    ids: Vec<i32>,
    text: String,
    reason: Reason,
    events: Vec<Event>,
    generation: Generation,
}

fn run(session: &mut Script, options: &GenerationOptions) -> Outcome {
    let mut sampler = Sampler::new(&SamplingParams::default()).unwrap();
    let mut generation = Generation::with_text(Some(Box::new(Bytes::default())), options).unwrap();
    let mut events = Vec::new();
    loop {
        events.push(generation.next(session, &mut sampler, None).unwrap());
        if events.last().unwrap().kind == Kind::Done {
            break;
        }
    }
    Outcome {
        ids: events.iter().flat_map(|e| e.ids.clone()).collect(),
        text: events.iter().map(|e| e.text.as_str()).collect(),
        reason: events.last().unwrap().reason.unwrap(),
        events,
        generation,
    }
}

fn bytes(text: &str) -> Vec<i32> {
    text.bytes().map(i32::from).collect()
}

#[test]
fn tokens_and_text_come_until_the_end_token() {
    let mut session = Script::new(&[1], &[bytes("héllo"), vec![256]].concat());
    let out = run(&mut session, &GenerationOptions::default());
    assert_eq!((out.text.as_str(), out.reason), ("héllo", Reason::EndToken));
    assert_eq!(out.ids, [bytes("héllo"), vec![256]].concat());
    assert_eq!(session.held, [vec![1], bytes("héllo")].concat());
    assert_eq!(out.generation.unheld().collect::<Vec<_>>(), [256]);
    assert!(out.events.iter().all(|e| e.ids.is_empty() || e.log_probability < 0.0));
    assert_eq!(out.generation.perf().tokens, 7);
    assert_eq!(out.generation.perf().decoded, 6);
}

#[test]
fn a_token_is_told_before_it_is_decoded() {
    let mut session = Script::new(&[1], &bytes("ab"));
    let mut sampler = Sampler::new(&SamplingParams::default()).unwrap();
    let options = GenerationOptions::default();
    let mut generation = Generation::with_text(Some(Box::new(Bytes::default())), &options).unwrap();
    let event = generation.next(&mut session, &mut sampler, None).unwrap();
    assert_eq!((event.text.as_str(), session.held.len()), ("a", 1));
    assert_eq!(generation.unheld().collect::<Vec<_>>(), bytes("a"));
}

#[test]
fn length_ends_with_everything_held() {
    let mut session = Script::new(&[1], &bytes("abcdef"));
    let out = run(&mut session, &GenerationOptions { max_tokens: 3, ..Default::default() });
    assert_eq!((out.text.as_str(), out.reason), ("abc", Reason::Length));
    assert_eq!(session.held, [vec![1], bytes("abc")].concat());
    assert_eq!(out.generation.unheld().count(), 0);
}

#[test]
fn end_tokens_can_be_ignored_and_stop_tokens_end() {
    let mut session = Script::new(&[1], &[97, 256, 98, 257, 99]);
    let options = GenerationOptions { ignore_end: true, stop_tokens: vec![257], ..Default::default() };
    let out = run(&mut session, &options);
    assert_eq!((out.text.as_str(), out.reason), ("ab", Reason::StopToken));
    assert_eq!(out.ids, [97, 256, 98, 257]);
    assert_eq!(session.held, [1, 97, 256, 98]);
}

#[test]
fn stop_texts_are_found_across_tokens_and_withheld() {
    let mut session = Script::new(&[1], &bytes("one\nUser: x"));
    let options =
        GenerationOptions { stop_texts: vec!["\nUser:".into(), "zzz".into()], ..Default::default() };
    let out = run(&mut session, &options);
    assert_eq!((out.text.as_str(), out.reason), ("one", Reason::StopText));
    assert_eq!(session.held, [vec![1], bytes("one\nUser:")].concat());
    // Held back from the line feed on, and nothing before it.
    assert_eq!(out.events[2].text, "e");
    assert!(out.events[3..].iter().all(|e| e.text.is_empty()));
}

#[test]
fn text_held_back_for_a_stop_text_that_never_comes_is_told() {
    let mut session = Script::new(&[1], &[bytes("a\nUsx\nUs"), vec![256]].concat());
    let options = GenerationOptions { stop_texts: vec!["\nUser:".into()], ..Default::default() };
    let out = run(&mut session, &options);
    assert_eq!((out.text.as_str(), out.reason), ("a\nUsx\nUs", Reason::EndToken));
}

#[test]
fn only_whole_characters_come_out_and_garbage_at_the_end_is_replaced() {
    let mut session = Script::new(&[1], &[0xe6, 0x97, 0xa5, 0xe6, 256]);
    let out = run(&mut session, &GenerationOptions::default());
    assert_eq!(out.text, "日\u{fffd}");
    assert_eq!(out.events[0].text, "");
    assert_eq!(out.events[2].text, "日");
}

#[test]
fn a_full_context_ends_with_the_last_token_told() {
    let mut session = Script::new(&[1], &bytes("abcdef"));
    session.capacity = 3;
    let out = run(&mut session, &GenerationOptions::default());
    assert_eq!((out.text.as_str(), out.reason), ("abc", Reason::ContextFull));
    assert_eq!(session.held, [vec![1], bytes("ab")].concat());
    assert_eq!(out.generation.unheld().collect::<Vec<_>>(), bytes("c"));
}

#[test]
fn cancelling_keeps_what_was_told() {
    let mut session = Script::new(&[1], &bytes("abcdef"));
    let mut sampler = Sampler::new(&SamplingParams::default()).unwrap();
    let options = GenerationOptions { stop_texts: vec!["cx".into()], ..Default::default() };
    let mut generation = Generation::with_text(Some(Box::new(Bytes::default())), &options).unwrap();
    let cancel = Cancel::new();
    for _ in 0..3 {
        generation.next(&mut session, &mut sampler, Some(&cancel)).unwrap();
    }
    cancel.trigger();
    let event = generation.next(&mut session, &mut sampler, Some(&cancel)).unwrap();
    assert_eq!((event.kind, event.reason), (Kind::Done, Some(Reason::Cancelled)));
    assert_eq!(event.text, "c", "text held back for a stop text is told");
    assert_eq!(session.held, [vec![1], bytes("ab")].concat());
    assert_eq!(generation.unheld().collect::<Vec<_>>(), bytes("c"));
    cancel.reset();
    let again = generation.next(&mut session, &mut sampler, Some(&cancel)).unwrap();
    assert_eq!((again.reason, again.ids.len(), again.text.len()), (Some(Reason::Cancelled), 0, 0));
}

#[test]
fn other_errors_come_out_and_the_pull_can_be_repeated() {
    let mut session = Script::new(&[1], &bytes("abc"));
    session.fail_at = Some((2, Status::KV_FULL));
    let mut sampler = Sampler::new(&SamplingParams::default()).unwrap();
    let options = GenerationOptions { max_tokens: 3, ..Default::default() };
    let mut generation = Generation::with_text(Some(Box::new(Bytes::default())), &options).unwrap();
    let mut text = String::new();
    let mut pull = |session: &mut Script| generation.next(session, &mut sampler, None);
    text.push_str(&pull(&mut session).unwrap().text);
    text.push_str(&pull(&mut session).unwrap().text);
    assert_eq!(pull(&mut session).unwrap_err().status(), Status::KV_FULL);
    session.fail_at = None;
    text.push_str(&pull(&mut session).unwrap().text);
    assert_eq!(pull(&mut session).unwrap().reason, Some(Reason::Length));
    assert_eq!(text, "abc");
}

#[test]
fn a_dead_end_is_a_reason() {
    let mut session = Script::new(&[1], &bytes("a"));
    let mut sampler = Sampler::new(&SamplingParams::default()).unwrap();
    let forbid: Vec<(i32, f32)> = (0..300).map(|id| (id, f32::NEG_INFINITY)).collect();
    sampler.set_bias(&forbid).unwrap();
    let mut generation = Generation::with_text(None, &GenerationOptions::default()).unwrap();
    let event = generation.next(&mut session, &mut sampler, None).unwrap();
    assert_eq!(event.reason, Some(Reason::DeadEnd));
}

#[test]
fn echo_tells_the_prompt_first() {
    let mut session = Script::new(&bytes("one\n"), &[bytes("two"), vec![256]].concat());
    let options = GenerationOptions { echo: true, stop_texts: vec!["one".into()], ..Default::default() };
    let out = run(&mut session, &options);
    assert_eq!((out.text.as_str(), out.reason), ("one\ntwo", Reason::EndToken));
    assert_eq!(out.ids, [bytes("one\ntwo"), vec![256]].concat());
}

#[test]
fn a_character_begun_in_the_prompt_is_finished() {
    let mut session = Script::new(&[0xe6, 0x97], &[0xa5, 256]);
    assert_eq!(run(&mut session, &GenerationOptions::default()).text, "日");
}

#[test]
fn ids_alone_work_without_a_tokenizer() {
    let mut session = Script::new(&[1], &[5, 256, 7, 8]);
    let mut sampler = Sampler::new(&SamplingParams::default()).unwrap();
    let options = GenerationOptions { stop_tokens: vec![8], ..Default::default() };
    let mut generation = Generation::with_text(None, &options).unwrap();
    let mut ids = Vec::new();
    while generation.reason().is_none() {
        let event = generation.next(&mut session, &mut sampler, None).unwrap();
        assert!(event.text.is_empty());
        ids.extend(event.ids);
    }
    assert_eq!(ids, [5, 256, 7, 8]);
    let stop = GenerationOptions { stop_texts: vec!["x".into()], ..Default::default() };
    assert_eq!(Generation::with_text(None, &stop).err().unwrap().status(), Status::INVALID_ARG);
    let empty = GenerationOptions { stop_texts: vec![String::new()], ..Default::default() };
    assert!(Generation::with_text(Some(Box::new(Bytes::default())), &empty).is_err());
}

#[test]
fn an_empty_session_is_an_error() {
    let mut session = Script::new(&[], &[]);
    let mut sampler = Sampler::new(&SamplingParams::default()).unwrap();
    let mut generation = Generation::with_text(None, &GenerationOptions::default()).unwrap();
    assert_eq!(generation.next(&mut session, &mut sampler, None).unwrap_err().status(), Status::BAD_STATE);
}

#[test]
fn events_tell_the_likeliest_tokens_of_their_place() {
    let mut session = Script::new(&[1], &[5, 6]);
    let options = GenerationOptions { max_tokens: 2, top_logprobs: 3, ..Default::default() };
    let mut generation = Generation::new(None, options).unwrap();
    let mut sampler = Sampler::new(&SamplingParams::default()).unwrap();
    for want in [5, 6] {
        let event = generation.next(&mut session, &mut sampler, None).unwrap();
        assert_eq!(event.ids, [want]);
        assert_eq!(event.top.len(), 3);
        assert_eq!((event.top[0].id, event.top[0].log_probability), (want, event.log_probability));
        assert!(event.top[0].log_probability > event.top[1].log_probability);
    }
    let event = generation.next(&mut session, &mut sampler, None).unwrap();
    assert_eq!((event.kind, event.top.len()), (Kind::Done, 0));
}
