//! A fate that is written down beforehand: this befalls the worker there, then that.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use crate::gate::{Befalls, Fate, Point};

/// Where something befalls somebody.
pub type Where = Box<dyn Fn(&Point) -> bool + Send>;

/// What was passed, and how much of a script was played.
#[derive(Debug, Default)]
pub struct Played {
    /// Every point, in order.
    pub passed: Vec<Point>,
    /// Where each line of the script struck.
    pub struck: Vec<Point>,
}

/// Lines are played in order, each once: what befalls at the next point that fits.
pub struct Script {
    lines: VecDeque<(Where, Befalls)>,
    played: Arc<Mutex<Played>>,
}

impl Script {
    pub fn new(lines: Vec<(Where, Befalls)>) -> (Script, Arc<Mutex<Played>>) {
        let played = Arc::new(Mutex::new(Played::default()));
        (Script { lines: lines.into(), played: played.clone() }, played)
    }
}

impl Fate for Script {
    fn befalls(&mut self, point: &Point) -> Befalls {
        let mut played = self.played.lock().unwrap_or_else(PoisonError::into_inner);
        played.passed.push(point.clone());
        let fits = self.lines.front().is_some_and(|(here, _)| here(point));
        match if fits { self.lines.pop_front() } else { None } {
            Some((_, befalls)) => {
                played.struck.push(point.clone());
                befalls
            }
            None => Befalls::Nothing,
        }
    }
}
