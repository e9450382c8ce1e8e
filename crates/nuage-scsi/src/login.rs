//! The login phase of one connection (RFC 7143 §6, §11.12, §11.13), target side.
//!
//! ```text
//!            InitiatorName, TargetName                          T, NSG = 3
//!  request ──► security (CSG 0) ── CHAP_A ► CHAP_N/R ──► operational (CSG 1) ──► full feature
//!                 └── no accounts: AuthMethod=None ──────────────┘
//! ```
//!
//! Fault model: the other side is untrusted. Every refusal carries a status (RFC 7143 §11.13.5) and
//! ends the connection; text is bounded; a login that takes more than `ROUNDS_MAX` PDUs is refused.

use crate::chap::{Account, Algorithm, Answer, CHALLENGE_BYTES, Challenge, ChapError, encode_hex};
use crate::negotiate::{Parameters, RECEIVE_BYTES_MAX};
use crate::pdu::Pdu;
use crate::text::Pairs;

/// Login PDUs of one connection before it is refused.
const ROUNDS_MAX: u32 = 32;
/// Text collected over continued login PDUs (C bit).
const TEXT_BYTES_MAX: usize = 16 * 1024;

/// Status class and detail of a login response (RFC 7143 §11.13.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status(pub u8, pub u8);

impl Status {
    pub const SUCCESS: Self = Self(0, 0);
    pub const INITIATOR_ERROR: Self = Self(2, 0x00);
    pub const AUTHENTICATION: Self = Self(2, 0x01);
    pub const FORBIDDEN: Self = Self(2, 0x02);
    pub const NOT_FOUND: Self = Self(2, 0x03);
    pub const VERSION: Self = Self(2, 0x05);
    pub const TOO_MANY_CONNECTIONS: Self = Self(2, 0x06);
    pub const MISSING_PARAMETER: Self = Self(2, 0x07);
    pub const SESSION_TYPE: Self = Self(2, 0x09);
    pub const INVALID_DURING_LOGIN: Self = Self(2, 0x0b);
    pub const OUT_OF_RESOURCES: Self = Self(3, 0x02);
}

/// Who may log in to a target, and how.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Access {
    /// Accounts of initiators; empty: no authentication is asked for, unless `closed`.
    pub accounts: Vec<Account>,
    /// CHAP is asked for whether or not anybody has an account.
    pub closed: bool,
    /// Our own name and secret, for initiators that want proof of us.
    pub own: Option<Account>,
    /// Initiator names that may log in; empty: any.
    pub initiators: Vec<String>,
}

impl Access {
    fn is_open(&self) -> bool {
        self.accounts.is_empty() && !self.closed
    }

    fn lists(&self, initiator: &str) -> bool {
        self.initiators.is_empty() || self.initiators.iter().any(|known| known == initiator)
    }

    /// Whether who once logged in like this would be let in now.
    pub(crate) fn admits(&self, initiator: &str, account: Option<&str>) -> bool {
        let has_account = |name: &str| self.accounts.iter().any(|known| known.name == name);
        self.lists(initiator) && (self.is_open() || account.is_some_and(has_account))
    }
}

/// Finds the access rule of a target by its iSCSI name; `None` as name: discovery.
pub trait Directory {
    fn access(&self, target: Option<&str>) -> Option<&Access>;
    fn portal_group_tag(&self) -> u16;
}

/// What a completed login settled.
#[derive(Debug, Clone)]
pub struct Agreement {
    pub initiator: String,
    /// The CHAP name; `None`: nobody asked.
    pub account: Option<String>,
    pub isid: [u8; 6],
    /// `None`: a discovery session.
    pub target: Option<String>,
    pub parameters: Parameters,
}

/// The answer to one login PDU.
#[derive(Debug, Clone)]
pub struct Reply {
    pub status: Status,
    pub transit: bool,
    pub current_stage: u8,
    pub next_stage: u8,
    pub pairs: Pairs,
    /// Set when this answer ends the login well.
    pub agreement: Option<Agreement>,
    /// For the log, never for the wire.
    pub reason: Option<&'static str>,
}

#[derive(Debug)]
enum Authentication {
    /// Nothing said yet.
    Open,
    /// `AuthMethod=CHAP` agreed, waiting for CHAP_A.
    Method,
    Challenged(Challenge),
    Passed,
}

/// The machine of one login.
#[derive(Debug)]
pub struct Login {
    rounds: u32,
    text: Vec<u8>,
    initiator: Option<String>,
    account: Option<String>,
    target: Option<String>,
    discovery: bool,
    isid: [u8; 6],
    authentication: Authentication,
    parameters: Parameters,
    stage: u8,
    declared: bool,
    challenge: [u8; CHALLENGE_BYTES],
    identifier: u8,
}

type Refusal = (Status, &'static str);

impl Login {
    /// `entropy`: fresh random bytes for the challenge of this connection.
    pub fn new(entropy: [u8; CHALLENGE_BYTES + 1]) -> Self {
        let mut challenge = [0; CHALLENGE_BYTES];
        challenge.copy_from_slice(&entropy[..CHALLENGE_BYTES]);
        Self {
            rounds: 0,
            text: Vec::new(),
            initiator: None,
            account: None,
            target: None,
            discovery: false,
            isid: [0; 6],
            authentication: Authentication::Open,
            parameters: Parameters::default(),
            stage: 0,
            declared: false,
            challenge,
            identifier: entropy[CHALLENGE_BYTES],
        }
    }

    /// Names for the log, as far as they are known.
    pub fn names(&self) -> (Option<&str>, Option<&str>) {
        (self.initiator.as_deref(), self.target.as_deref())
    }

    /// Answer one login PDU.
    pub fn receive(&mut self, pdu: &Pdu, directory: &dyn Directory) -> Reply {
        let current_stage = pdu.header.flags() >> 2 & 3;
        match self.step(pdu, directory) {
            Ok(reply) => reply,
            Err((status, reason)) => Reply {
                status,
                transit: false,
                current_stage,
                next_stage: 0,
                pairs: Pairs::default(),
                agreement: None,
                reason: Some(reason),
            },
        }
    }

    fn step(&mut self, pdu: &Pdu, directory: &dyn Directory) -> Result<Reply, Refusal> {
        let flags = pdu.header.flags();
        let (transit, more) = (flags & 0x80 != 0, flags & 0x40 != 0);
        let (current, next) = (flags >> 2 & 3, flags & 3);
        self.rounds += 1;
        if self.rounds > ROUNDS_MAX {
            return Err((Status::INITIATOR_ERROR, "the login takes too many PDUs"));
        }
        self.check_header(pdu, current, next)?;
        if self.text.len() + pdu.data.len() > TEXT_BYTES_MAX {
            return Err((Status::OUT_OF_RESOURCES, "the login text is too long"));
        }
        self.text.extend_from_slice(&pdu.data);
        let mut reply = Reply {
            status: Status::SUCCESS,
            transit: false,
            current_stage: current,
            next_stage: 0,
            pairs: Pairs::default(),
            agreement: None,
            reason: None,
        };
        if more {
            return Ok(reply);
        }
        let pairs = Pairs::parse(&std::mem::take(&mut self.text))
            .map_err(|_| (Status::INITIATOR_ERROR, "the login text is malformed"))?;
        self.identify(pdu, &pairs, directory)?;
        let access = self.access(directory)?;
        if !self.declared && !self.discovery {
            reply.pairs.push(
                "TargetPortalGroupTag",
                directory.portal_group_tag().to_string(),
            );
        }
        if current == 0 {
            self.security(&pairs, access, &mut reply.pairs)?;
        } else {
            self.operational(&pairs, access, &mut reply.pairs)?;
        }
        self.declared = true;
        let may_go = match self.authentication {
            Authentication::Passed => true,
            Authentication::Open => access.is_open(),
            Authentication::Method | Authentication::Challenged(_) => false,
        };
        if transit && may_go {
            reply.transit = true;
            reply.next_stage = next;
            self.stage = next;
            if next == 3 {
                self.parameters.close();
                reply.agreement = Some(Agreement {
                    initiator: self.initiator.clone().unwrap_or_default(),
                    account: self.account.clone(),
                    isid: self.isid,
                    target: self.target.clone(),
                    parameters: self.parameters,
                });
            }
        }
        Ok(reply)
    }

    fn check_header(&mut self, pdu: &Pdu, current: u8, next: u8) -> Result<(), Refusal> {
        if pdu.header.0[3] != 0 {
            return Err((
                Status::VERSION,
                "the initiator needs another version of iSCSI",
            ));
        }
        let transit = pdu.header.flags() & 0x80 != 0;
        if current > 1 || (transit && (next <= current || next == 2)) {
            return Err((Status::INITIATOR_ERROR, "impossible login stages"));
        }
        // The first PDU may open either stage; later ones stay where we are.
        if self.rounds == 1 {
            self.stage = current;
            self.isid.copy_from_slice(&pdu.header.0[8..14]);
            if pdu.header.0[14..16] != [0, 0] {
                return Err((Status::TOO_MANY_CONNECTIONS, "a session has one connection"));
            }
        } else if current != self.stage || pdu.header.0[8..14] != self.isid {
            return Err((
                Status::INITIATOR_ERROR,
                "the login changed its stage or its session",
            ));
        }
        Ok(())
    }

    fn identify(
        &mut self,
        _pdu: &Pdu,
        pairs: &Pairs,
        directory: &dyn Directory,
    ) -> Result<(), Refusal> {
        if self.initiator.is_some() {
            return Ok(());
        }
        let name = pairs
            .get("InitiatorName")
            .filter(|name| !name.is_empty() && name.len() <= 223)
            .ok_or((Status::MISSING_PARAMETER, "no InitiatorName"))?;
        self.discovery = match pairs.get("SessionType") {
            None | Some("Normal") => false,
            Some("Discovery") => true,
            Some(_) => return Err((Status::SESSION_TYPE, "unknown SessionType")),
        };
        if !self.discovery {
            let target = pairs
                .get("TargetName")
                .ok_or((Status::MISSING_PARAMETER, "no TargetName"))?;
            self.target = Some(target.to_owned());
        }
        self.initiator = Some(name.to_owned());
        let access = self.access(directory)?;
        if !access.lists(name) {
            return Err((
                Status::FORBIDDEN,
                "this initiator is not on the target's list",
            ));
        }
        Ok(())
    }

    fn access<'a>(&self, directory: &'a dyn Directory) -> Result<&'a Access, Refusal> {
        let name = if self.discovery {
            None
        } else {
            self.target.as_deref()
        };
        directory
            .access(name)
            .ok_or((Status::NOT_FOUND, "no such target"))
    }

    fn security(
        &mut self,
        pairs: &Pairs,
        access: &Access,
        answers: &mut Pairs,
    ) -> Result<(), Refusal> {
        match &self.authentication {
            Authentication::Open => {
                if let Some(methods) = pairs.get("AuthMethod") {
                    let wanted = if access.is_open() { "None" } else { "CHAP" };
                    if !methods.split(',').any(|method| method == wanted) {
                        return Err((Status::AUTHENTICATION, "no common AuthMethod"));
                    }
                    answers.push("AuthMethod", wanted);
                    self.authentication = if access.is_open() {
                        Authentication::Passed
                    } else {
                        Authentication::Method
                    };
                }
                self.other_keys(pairs, answers);
                // Some initiators send CHAP_A together with AuthMethod.
                if pairs.get("CHAP_A").is_some()
                    && matches!(self.authentication, Authentication::Method)
                {
                    self.challenge(pairs, answers)?;
                }
                Ok(())
            }
            Authentication::Method => self.challenge(pairs, answers),
            Authentication::Challenged(challenge) => {
                let proof = check_answer(challenge, pairs, access)?;
                if let Some((name, response)) = proof {
                    answers.push("CHAP_N", name);
                    answers.push("CHAP_R", response);
                }
                self.account = pairs.get("CHAP_N").map(str::to_owned);
                self.authentication = Authentication::Passed;
                Ok(())
            }
            Authentication::Passed => {
                self.other_keys(pairs, answers);
                Ok(())
            }
        }
    }

    /// Operational keys are allowed in the security stage too.
    fn other_keys(&mut self, pairs: &Pairs, answers: &mut Pairs) {
        for (key, value) in pairs.iter() {
            if !matches!(
                key,
                "AuthMethod" | "CHAP_A" | "CHAP_N" | "CHAP_R" | "CHAP_I" | "CHAP_C"
            ) {
                self.parameters.settle(key, value, answers);
            }
        }
    }

    fn challenge(&mut self, pairs: &Pairs, answers: &mut Pairs) -> Result<(), Refusal> {
        let list = pairs
            .get("CHAP_A")
            .ok_or((Status::AUTHENTICATION, "CHAP_A is missing"))?;
        let algorithm =
            Algorithm::choose(list).ok_or((Status::AUTHENTICATION, "no common CHAP algorithm"))?;
        answers.push("CHAP_A", (algorithm as u8).to_string());
        answers.push("CHAP_I", self.identifier.to_string());
        answers.push("CHAP_C", encode_hex(&self.challenge));
        self.authentication = Authentication::Challenged(Challenge {
            algorithm,
            identifier: self.identifier,
            challenge: self.challenge,
        });
        Ok(())
    }

    fn operational(
        &mut self,
        pairs: &Pairs,
        access: &Access,
        answers: &mut Pairs,
    ) -> Result<(), Refusal> {
        if !access.is_open() && !matches!(self.authentication, Authentication::Passed) {
            return Err((Status::AUTHENTICATION, "the target asks for CHAP"));
        }
        if !matches!(self.authentication, Authentication::Passed) {
            self.authentication = Authentication::Passed;
        }
        self.other_keys(pairs, answers);
        answers.push("MaxRecvDataSegmentLength", RECEIVE_BYTES_MAX.to_string());
        Ok(())
    }
}

fn check_answer(
    challenge: &Challenge,
    pairs: &Pairs,
    access: &Access,
) -> Result<Option<(String, String)>, Refusal> {
    let missing = (Status::AUTHENTICATION, "CHAP_N or CHAP_R is missing");
    let name = pairs.get("CHAP_N").ok_or(missing)?;
    let response = pairs.get("CHAP_R").ok_or(missing)?;
    let mutual = match (pairs.get("CHAP_I"), pairs.get("CHAP_C")) {
        (Some(identifier), Some(value)) => Some((identifier, value)),
        (None, None) => None,
        _ => return Err((Status::AUTHENTICATION, "CHAP_I and CHAP_C go together")),
    };
    challenge
        .check(
            &Answer {
                name,
                response,
                mutual,
            },
            &access.accounts,
            access.own.as_ref(),
        )
        .map_err(|error| {
            let reason = match error {
                ChapError::Malformed => "a CHAP value is malformed",
                ChapError::TooLong => "a CHAP value is too long",
                ChapError::UnknownName => "no CHAP account of this name",
                ChapError::WrongResponse => "wrong CHAP response",
                ChapError::Reflected => "our own CHAP challenge was sent back",
                ChapError::NoTargetSecret => "mutual CHAP without a target secret",
            };
            (Status::AUTHENTICATION, reason)
        })
}
