//! Refuses what cannot work, on the token that says it, before anything is expanded.

mod arguments;
mod signature;

pub(crate) use arguments::{Jitter, Kind, Settings};
pub(crate) use signature::{Binding, Bindings, Returns, names_impl};

use crate::{
    Written,
    parse::{Arguments, Function},
};
use quote::ToTokens;
use std::fmt;
use syn::{Error, Result};

/// A function and what is to be done around it, checked.
pub(crate) struct Call {
    pub(crate) settings: Settings,
    pub(crate) bindings: Bindings,
    pub(crate) returns: Returns,
}

impl Call {
    /// Every problem at once.
    pub(crate) fn new(written: Written, arguments: Arguments, function: &Function) -> Result<Self> {
        let mut problems = Problems::default();
        let settings = Settings::new(written, arguments, &mut problems);
        let bindings = Bindings::new(function, &mut problems);
        match Returns::new(&function.signature) {
            Ok(returns) => problems.done().map(|()| Self { settings, bindings, returns }),
            Err(problem) => Err(problems.and(problem)),
        }
    }
}

/// What was found so far.
#[derive(Default)]
struct Problems(Option<Error>);

impl Problems {
    fn add(&mut self, at: impl ToTokens, problem: impl fmt::Display) {
        let problem = Error::new_spanned(at, problem);
        match &mut self.0 {
            None => self.0 = Some(problem),
            Some(others) => others.combine(problem),
        }
    }

    fn and(self, problem: Error) -> Error {
        match self.0 {
            None => problem,
            Some(mut others) => {
                others.combine(problem);
                others
            }
        }
    }

    fn done(self) -> Result<()> {
        self.0.map_or(Ok(()), Err)
    }
}
