//! The first login of a device: it registers the account, or gives keys to one that has only a password. Pure.

use super::error::{ClientError, ErrorCode};
use super::keys::Keys;
use crate::messaging_wire::signing::Statement;
use crate::messaging_wire::{
    self, ErrorBody, Event, FixedBytes, Key, Login, LoginProof, NewDevice, Register, Request, ServerFrame,
    SetIdentity,
};

/// What a device needs to enroll.
pub(super) struct Enrollment<'a> {
    pub(super) user: &'a str,
    pub(super) keys: &'a Keys,
    pub(super) label: &'a str,
    /// For an account that the TCP protocol may use too.
    pub(super) password: Option<&'a str>,
    stage: Stage,
    challenge: Key,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Hello,
    Registration,
    PasswordLogin,
    Identity,
    Device,
}

/// What to do next.
#[derive(Debug, PartialEq)]
pub(super) enum Step {
    Send(String),
    Wait,
    /// The account has this device.
    Done,
}

impl<'a> Enrollment<'a> {
    pub(super) fn new(user: &'a str, keys: &'a Keys, label: &'a str, password: Option<&'a str>) -> Self {
        Self { user, keys, label, password, stage: Stage::Hello, challenge: FixedBytes([0; 32]) }
    }

    /// Handles a text frame of the server.
    pub(super) fn handle_frame(&mut self, text: &str) -> Result<Step, ClientError> {
        let frame = ServerFrame::parse(text).map_err(|error| ClientError::Protocol(error.to_string()))?;
        match (frame, self.stage) {
            (
                ServerFrame::Event(Event::Hello { version: messaging_wire::VERSION, challenge }),
                Stage::Hello,
            ) => {
                self.challenge = challenge;
                self.next(Stage::Registration)
            }
            (ServerFrame::Ok { .. }, Stage::Registration | Stage::Device) => Ok(Step::Done),
            (ServerFrame::Ok { .. }, Stage::PasswordLogin) => self.next(Stage::Identity),
            (ServerFrame::Ok { .. }, Stage::Identity) => self.next(Stage::Device),
            (ServerFrame::Error { error, .. }, Stage::Registration)
                if error.code == ErrorCode::NameTaken && self.password.is_some() =>
            {
                self.next(Stage::PasswordLogin)
            }
            (ServerFrame::Error { error, .. }, Stage::Identity)
                if error.code == ErrorCode::WrongCredentials =>
            {
                // The password was right: the account has an identity key, of another device.
                let message = "the account has keys already".to_owned();
                Err(ClientError::Refused { code: ErrorCode::NameTaken, message })
            }
            (ServerFrame::Error { error: ErrorBody { code, message, .. }, .. }, _) => {
                Err(ClientError::Refused { code, message })
            }
            (ServerFrame::Event(Event::Hello { version, .. }), _) => {
                Err(ClientError::Protocol(format!("version {version}")))
            }
            _ => Ok(Step::Wait),
        }
    }

    fn next(&mut self, stage: Stage) -> Result<Step, ClientError> {
        self.stage = stage;
        let no_identity = || ClientError::Protocol("no identity key".to_owned());
        let identity = self.keys.identity.as_ref().ok_or_else(no_identity)?;
        let identity_key = identity.public();
        let statement = Statement::Registration {
            challenge: &self.challenge.0,
            user: self.user,
            identity_key: &identity_key,
        };
        let (proof, user) = (FixedBytes(identity.sign(&statement)), self.user.to_owned());
        let password = self.password.map(str::to_owned);
        let device = || -> NewDevice { self.keys.device_code(self.label).certify(self.user, identity) };
        let identity_key = FixedBytes(identity_key);
        let (id, request) = match stage {
            Stage::Hello | Stage::Registration => {
                let (identity_key, proof) = (Some(identity_key), Some(proof));
                (
                    1,
                    Request::Register(Register {
                        user,
                        password,
                        identity_key,
                        proof,
                        device: Some(device()),
                    }),
                )
            }
            Stage::PasswordLogin => {
                let proof = LoginProof::Password(password.unwrap_or_default());
                (2, Request::Login(Login { user, proof }))
            }
            Stage::Identity => (3, Request::SetIdentity(SetIdentity { identity_key, proof })),
            Stage::Device => (4, Request::AddDevice(device())),
        };
        Ok(Step::Send(request.to_frame(id)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::messaging_client::keys::Secrets;
    use crate::messaging_wire::{Empty, Registered, error_frame, ok_frame};
    use rand::SeedableRng;
    use rand_chacha::ChaCha20Rng;

    const CHALLENGE: [u8; 32] = [5; 32];

    fn keys() -> Keys {
        Keys::new(&Secrets::generate(true, &mut ChaCha20Rng::seed_from_u64(1))).unwrap()
    }

    fn hello() -> String {
        Event::Hello { version: 1, challenge: FixedBytes(CHALLENGE) }.to_frame()
    }

    fn request(step: Result<Step, ClientError>) -> Request {
        let Ok(Step::Send(frame)) = step else { panic!("{step:?}") };
        Request::parse(&frame).unwrap().1
    }

    fn refused(code: ErrorCode) -> String {
        error_frame(1, &ErrorBody::new(code, "no"))
    }

    #[test]
    fn a_new_account_is_registered_with_a_proof_and_a_certified_device() {
        let keys = keys();
        let mut enrollment = Enrollment::new("alice", &keys, "pc", None);
        let Request::Register(register) = request(enrollment.handle_frame(&hello())) else { panic!() };
        let identity_key = register.identity_key.unwrap().0;
        let proof =
            Statement::Registration { challenge: &CHALLENGE, user: "alice", identity_key: &identity_key };
        assert!(proof.is_signed(&identity_key, &register.proof.unwrap().0));
        let device = register.device.unwrap();
        let (signing_key, encryption_key) = (&device.signing_key.0, &device.encryption_key.0);
        let certificate = Statement::Device { user: "alice", signing_key, encryption_key };
        assert!(certificate.is_signed(&identity_key, &device.signature.0));
        let done = enrollment.handle_frame(&ok_frame(1, &Registered { device: Some(1) }));
        assert_eq!(done.unwrap(), Step::Done);
    }

    #[test]
    fn an_account_with_a_password_gets_an_identity_and_a_device() {
        let keys = keys();
        let mut enrollment = Enrollment::new("alice", &keys, "pc", Some("secret"));
        request(enrollment.handle_frame(&hello()));
        let login = request(enrollment.handle_frame(&refused(ErrorCode::NameTaken)));
        assert!(
            matches!(login, Request::Login(Login { proof: LoginProof::Password(password), .. }) if password == "secret")
        );
        let ok = ok_frame(2, &Empty {});
        assert!(matches!(request(enrollment.handle_frame(&ok)), Request::SetIdentity(_)));
        assert!(matches!(request(enrollment.handle_frame(&ok)), Request::AddDevice(_)));
        assert_eq!(enrollment.handle_frame(&ok).unwrap(), Step::Done);
    }

    #[test]
    fn a_taken_name_and_an_account_with_keys_are_refused() {
        let keys = keys();
        let mut enrollment = Enrollment::new("alice", &keys, "pc", None);
        request(enrollment.handle_frame(&hello()));
        let taken = enrollment.handle_frame(&refused(ErrorCode::NameTaken));
        assert!(matches!(taken, Err(ClientError::Refused { code: ErrorCode::NameTaken, .. })));
        let mut enrollment = Enrollment::new("alice", &keys, "pc", Some("secret"));
        request(enrollment.handle_frame(&hello()));
        request(enrollment.handle_frame(&refused(ErrorCode::NameTaken)));
        request(enrollment.handle_frame(&ok_frame(2, &Empty {})));
        let has_keys = enrollment.handle_frame(&refused(ErrorCode::WrongCredentials));
        assert!(matches!(has_keys, Err(ClientError::Refused { code: ErrorCode::NameTaken, .. })));
    }
}
