//! Faults on request: what a caller must survive when WeChat, or the way to it, is unwell.

use serde::{Deserialize, Serialize};

use crate::endpoint::Endpoint;

/// Faults that may wait at once.
const WAITING: usize = 1_000;
/// The longest delay.
const LONGEST_DELAY_MS: u64 = 120_000;

/// What happens to the next calls of an interface.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// A path such as `/cgi-bin/token`, or `*` for every interface.
    pub endpoint: String,
    /// Only the calls of this account.
    #[serde(default)]
    pub app_id: Option<String>,
    /// Answer this error code, with WeChat's text for it unless `errmsg` is given.
    #[serde(default)]
    pub errcode: Option<i64>,
    /// The text that goes with `errcode`.
    #[serde(default)]
    pub errmsg: Option<String>,
    /// Answer this HTTP status, with `body`.
    #[serde(default)]
    pub status: Option<u16>,
    /// Answer these bytes.
    #[serde(default)]
    pub body: Option<String>,
    /// Wait before anything else happens. A caller that hangs up meanwhile does not take its request back.
    #[serde(default)]
    pub delay_ms: Option<u64>,
    /// Reset the connection in place of an answer.
    #[serde(default)]
    pub reset: bool,
    /// Put a byte-order mark before the answer.
    #[serde(default)]
    pub bom: bool,
    /// Call the answer `text/plain`.
    #[serde(default)]
    pub text_plain: bool,
    /// Carry the call out all the same: only its answer is replaced or lost.
    #[serde(default)]
    pub carried_out: bool,
    /// How many calls it happens to.
    #[serde(default = "once")]
    pub times: u32,
    /// The share of the calls that it happens to, above 0 and at most 1; none is 1. Drawn anew for each call.
    #[serde(default)]
    pub share: Option<f64>,
}

const fn once() -> u32 {
    1
}

impl Fault {
    /// A fault that does nothing yet to the next call of `endpoint`.
    pub fn at(endpoint: &str) -> Self {
        Self {
            endpoint: endpoint.to_owned(),
            app_id: None,
            errcode: None,
            errmsg: None,
            status: None,
            body: None,
            delay_ms: None,
            reset: false,
            bom: false,
            text_plain: false,
            carried_out: false,
            times: 1,
            share: None,
        }
    }

    /// Whether the answer is not the interface's own.
    pub(crate) const fn replaces_answer(&self) -> bool {
        self.errcode.is_some() || self.status.is_some() || self.body.is_some() || self.reset
    }

    pub(crate) fn validate(&self) -> Result<(), String> {
        if self.endpoint != "*" && Endpoint::from_path(&self.endpoint).is_none() {
            return Err(format!(
                "endpoint: {} is not an interface of this sandbox, nor *",
                self.endpoint
            ));
        }
        if self.times == 0 {
            return Err("times must be at least 1".to_owned());
        }
        if self
            .share
            .is_some_and(|share| !(share > 0.0 && share <= 1.0))
        {
            return Err("share must be above 0 and at most 1".to_owned());
        }
        if self.delay_ms.is_some_and(|delay| delay > LONGEST_DELAY_MS) {
            return Err(format!("delay_ms must be at most {LONGEST_DELAY_MS}"));
        }
        if self
            .status
            .is_some_and(|status| !(200..=599).contains(&status))
        {
            return Err("status must be 200 to 599".to_owned());
        }
        if self.errcode.is_none() && self.errmsg.is_some() {
            return Err("errmsg needs an errcode".to_owned());
        }
        if self.errcode.is_some() && (self.status.is_some() || self.body.is_some()) {
            return Err("errcode excludes status and body".to_owned());
        }
        if self.carried_out && !self.replaces_answer() {
            return Err("carried_out needs an errcode, a status, a body or a reset".to_owned());
        }
        if !self.replaces_answer() && self.delay_ms.is_none() && !self.bom && !self.text_plain {
            return Err("the fault does nothing: give errcode, status, body, delay_ms, reset, bom or text_plain".to_owned());
        }
        Ok(())
    }
}

/// The faults that wait for their calls.
#[derive(Default)]
pub(crate) struct Faults(Vec<Fault>);

impl Faults {
    pub(crate) fn add(&mut self, fault: Fault) -> Result<(), String> {
        fault.validate()?;
        if self.0.len() >= WAITING {
            return Err(format!("{WAITING} faults are waiting already"));
        }
        self.0.push(fault);
        Ok(())
    }

    /// The fault that happens to this call: the first that fits and whose share it falls in.
    pub(crate) fn take(&mut self, endpoint: Endpoint, app_id: Option<&str>) -> Option<Fault> {
        let position = self.0.iter().position(|fault| {
            (fault.endpoint == "*" || fault.endpoint == endpoint.path())
                && fault
                    .app_id
                    .as_deref()
                    .is_none_or(|wanted| Some(wanted) == app_id)
                && fault
                    .share
                    .is_none_or(|share| rand::random::<f64>() < share)
        })?;
        let fault = self.0.get_mut(position)?;
        fault.times -= 1;
        let taken = fault.clone();
        if taken.times == 0 {
            self.0.remove(position);
        }
        Some(taken)
    }

    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_happens_as_often_as_asked_and_to_whom() {
        let mut faults = Faults::default();
        let fault = Fault {
            errcode: Some(-1),
            times: 2,
            app_id: Some("wx1".to_owned()),
            ..Fault::at("/cgi-bin/token")
        };
        faults.add(fault).unwrap();
        assert!(faults.take(Endpoint::Token, Some("wx2")).is_none());
        assert!(faults.take(Endpoint::Ticket, Some("wx1")).is_none());
        assert!(faults.take(Endpoint::Token, Some("wx1")).is_some());
        assert!(faults.take(Endpoint::Token, Some("wx1")).is_some());
        assert!(faults.take(Endpoint::Token, Some("wx1")).is_none());
    }

    #[test]
    fn a_fault_with_a_share_happens_to_some_calls_and_the_next_fault_to_the_others() {
        let mut faults = Faults::default();
        let sometimes = Fault {
            errcode: Some(-1),
            times: 10_000,
            share: Some(0.3),
            ..Fault::at("*")
        };
        let otherwise = Fault {
            reset: true,
            times: 10_000,
            ..Fault::at("*")
        };
        faults.add(sometimes).unwrap();
        faults.add(otherwise).unwrap();
        let taken = (0..10_000).filter_map(|_| faults.take(Endpoint::Token, None));
        let (refused, reset): (Vec<_>, Vec<_>) = taken.partition(|fault| fault.errcode.is_some());
        assert_eq!(refused.len() + reset.len(), 10_000);
        // Ten standard deviations.
        assert!((2_500..3_500).contains(&refused.len()), "{}", refused.len());
    }

    #[test]
    fn a_fault_without_effect_is_refused() {
        let refused = |fault: Fault| Faults::default().add(fault).unwrap_err();
        assert!(refused(Fault::at("*")).contains("does nothing"));
        assert!(
            refused(Fault {
                reset: true,
                ..Fault::at("/nowhere")
            })
            .contains("endpoint")
        );
        assert!(
            refused(Fault {
                reset: true,
                times: 0,
                ..Fault::at("*")
            })
            .contains("times")
        );
        assert!(
            refused(Fault {
                delay_ms: Some(1),
                carried_out: true,
                ..Fault::at("*")
            })
            .contains("carried_out")
        );
        for share in [0.0, 1.5, f64::NAN] {
            let fault = Fault {
                reset: true,
                share: Some(share),
                ..Fault::at("*")
            };
            assert!(refused(fault).contains("share"), "{share}");
        }
    }
}
