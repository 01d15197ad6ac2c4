use super::*;
use crate::net::time::now;
use ring::signature::{Ed25519KeyPair, KeyPair};
use serde_json::{Value, json};

const SECRET: &[u8] = b"a secret of thirty-two bytes or more";

fn hs256() -> Jwt {
    Jwt::new(JwtKey::hs256(SECRET).unwrap())
}

fn pair() -> Ed25519KeyPair {
    Ed25519KeyPair::from_seed_unchecked(&[7; 32]).unwrap()
}

fn ed_dsa() -> Jwt {
    Jwt::new(JwtKey::EdDsa(pair().public_key().as_ref().try_into().unwrap()))
}

fn signed(header: &Value, claims: &Value, sign: impl Fn(&[u8]) -> Vec<u8>) -> String {
    let part = |value: &Value| BASE64URL_NOPAD.encode(value.to_string().as_bytes());
    let body = format!("{}.{}", part(header), part(claims));
    let mark = BASE64URL_NOPAD.encode(&sign(body.as_bytes()));
    format!("{body}.{mark}")
}

fn mac(secret: &[u8], text: &[u8]) -> Vec<u8> {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), text).as_ref().to_vec()
}

/// A token of HS256 with these claims.
fn token(claims: &Value) -> String {
    signed(&json!({"alg": "HS256", "typ": "JWT"}), claims, |text| mac(SECRET, text))
}

fn admit(jwt: &Jwt, now: Now, shown: &str) -> Result<Admitted, Refusal> {
    jwt.admit(&Realms::default(), now, shown)
}

fn at(unix: u64) -> Now {
    Now { unix, ..now() }
}

#[test]
fn a_token_has_its_scopes_realm_and_end() {
    let all = json!({"exp": 1000, "scope": "relay openid register", "realm": "blue", "sub": "alice"});
    let blue = Realms::default().named("blue");
    let scopes = Scopes { relay: true, register: true, admin: false };
    assert_eq!(
        admit(&hs256(), at(900), &token(&all)),
        Ok(Admitted {
            scopes,
            realm: blue,
            until: Some(1000),
            account: Realms::default().account(&["sub", "", "blue", "alice"])
        })
    );
    let listed = json!({"exp": 1000.5, "scope": ["admin", "relay"], "nbf": null});
    let scopes = Scopes { relay: true, register: false, admin: true };
    let admitted = admit(&hs256(), at(900), &token(&listed)).unwrap();
    assert_eq!(
        Admitted { account: 0, ..admitted },
        Admitted { scopes, until: Some(1000), ..Admitted::default() }
    );
    let bare = admit(&hs256(), at(900), &token(&json!({"exp": 1000}))).unwrap();
    assert_eq!(bare.scopes, Scopes::default());
}

#[test]
fn an_account_is_a_subjects_or_a_tokens() {
    let account = |claims: Value| admit(&hs256(), at(900), &token(&claims)).unwrap().account;
    let alice = account(json!({"exp": 1000, "sub": "alice"}));
    assert_eq!(account(json!({"exp": 990, "sub": "alice", "scope": "relay"})), alice, "another token");
    let others = [
        json!({"exp": 1000, "sub": "bob"}),
        json!({"exp": 1000, "sub": "alice", "realm": "blue"}),
        json!({"exp": 1000, "sub": "alice", "iss": "other"}),
        json!({"exp": 1000}),
        json!({"exp": 1001}),
    ];
    let accounts: std::collections::BTreeSet<u64> = others.map(account).into_iter().chain([alice]).collect();
    assert_eq!(accounts.len(), 6);
}

#[test]
fn both_algorithms_verify_what_others_have_signed() {
    // RFC 7515 appendix A.1.
    let secret = BASE64URL_NOPAD
        .decode(b"AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow")
        .unwrap();
    let example = "eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";
    let jwt = Jwt { issuer: Some("joe".into()), ..Jwt::new(JwtKey::hs256(&secret).unwrap()) };
    assert_eq!(
        admit(&jwt, at(1_300_819_000), example).map(|admitted| admitted.until),
        Ok(Some(1_300_819_380))
    );
    assert_eq!(admit(&jwt, at(1_300_819_380 + 60), example), Err(Refusal::Expired));
    // RFC 8037 appendix A.4: the claims are no JSON, which is found out after the signature.
    let key = JwtKey::ed_dsa("11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo").unwrap();
    let example = "eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc.hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg";
    assert_eq!(admit(&Jwt::new(key), at(0), example), Err(Refusal::Malformed));
    for alg in ["EdDSA", "Ed25519"] {
        let token =
            signed(&json!({"alg": alg}), &json!({"exp": 1000}), |text| pair().sign(text).as_ref().to_vec());
        assert!(admit(&ed_dsa(), at(900), &token).is_ok(), "{alg}");
        assert!(ed_dsa().is_costly(&token) && !hs256().is_costly(&token));
    }
}

#[test]
fn the_token_does_not_choose_its_algorithm() {
    let claims = json!({"exp": 1000, "scope": "admin"});
    // The public key as a secret: the classic confusion.
    let JwtKey::EdDsa(public) = ed_dsa().key else { panic!("another key") };
    let confused = signed(&json!({"alg": "HS256"}), &claims, |text| mac(&public, text));
    assert_eq!(admit(&ed_dsa(), at(900), &confused), Err(Refusal::Algorithm));
    for alg in ["none", "None", "HS384", "EdDSA", "hs256", ""] {
        let other = signed(&json!({"alg": alg}), &claims, |text| mac(SECRET, text));
        assert_eq!(admit(&hs256(), at(900), &other), Err(Refusal::Algorithm), "{alg}");
    }
    let unsigned = signed(&json!({"alg": "none"}), &claims, |_| Vec::new());
    assert_eq!(admit(&hs256(), at(900), &unsigned), Err(Refusal::Algorithm));
    let unsigned = signed(&json!({"alg": "HS256"}), &claims, |_| Vec::new());
    assert_eq!(admit(&hs256(), at(900), &unsigned), Err(Refusal::Signature));
    let critical = json!({"alg": "HS256", "crit": ["b64"], "b64": false});
    let critical = signed(&critical, &claims, |text| mac(SECRET, text));
    assert_eq!(admit(&hs256(), at(900), &critical), Err(Refusal::Algorithm));
    let relabelled = signed(&json!({"alg": "EdDSA"}), &claims, |text| mac(SECRET, text));
    assert_eq!(admit(&ed_dsa(), at(900), &relabelled), Err(Refusal::Signature));
}

#[test]
fn a_token_that_was_changed_anywhere_is_refused() {
    let token = token(&json!({"exp": 1000, "scope": "relay"}));
    for (place, byte) in token.bytes().enumerate() {
        let other = if byte == b'A' { b'B' } else { b'A' };
        let mut changed = token.clone().into_bytes();
        changed[place] = other;
        let changed = String::from_utf8(changed).unwrap();
        assert!(admit(&hs256(), at(900), &changed).is_err(), "{place}: {changed}");
    }
    let foreign = signed(&json!({"alg": "HS256"}), &json!({"exp": 1000}), |text| mac(&[9; 32], text));
    assert_eq!(admit(&hs256(), at(900), &foreign), Err(Refusal::Signature));
    for rubbish in
        ["", ".", "..", "...", "a.b", "a.b.c", "a.b.c.d", &format!("{token}."), &format!("{token}=")]
    {
        assert!(admit(&hs256(), at(900), rubbish).is_err(), "{rubbish}");
    }
}

#[test]
fn a_token_counts_in_its_time_give_or_take_a_minute_and_no_longer_than_a_day() {
    let exp = |exp: u64| token(&json!({"exp": exp}));
    assert!(admit(&hs256(), at(1059), &exp(1000)).is_ok());
    assert_eq!(admit(&hs256(), at(1060), &exp(1000)), Err(Refusal::Expired));
    let day = 86_400;
    assert!(admit(&hs256(), at(1000), &exp(1060 + day)).is_ok());
    assert_eq!(admit(&hs256(), at(1000), &exp(1061 + day)), Err(Refusal::TooLong));
    let later = token(&json!({"exp": 2000, "nbf": 1060}));
    assert_eq!(admit(&hs256(), at(999), &later), Err(Refusal::TooEarly));
    assert!(admit(&hs256(), at(1000), &later).is_ok());
    let strict = Jwt { leeway: Duration::ZERO, max_lifetime: Duration::from_secs(10), ..hs256() };
    assert!(admit(&strict, at(999), &exp(1000)).is_ok());
    assert_eq!(admit(&strict, at(1000), &exp(1000)), Err(Refusal::Expired));
    assert_eq!(admit(&strict, at(989), &exp(1000)), Err(Refusal::TooLong));
}

#[test]
fn issuer_and_audience_are_checked_where_they_are_configured() {
    let strict = Jwt { issuer: Some("us".into()), audience: Some("relay".into()), ..hs256() };
    let with =
        |iss: Value, aud: Value| admit(&strict, at(0), &token(&json!({"exp": 99, "iss": iss, "aud": aud})));
    assert!(with(json!("us"), json!("relay")).is_ok());
    assert!(with(json!("us"), json!(["shop", "relay"])).is_ok());
    for (iss, aud) in [
        (json!("them"), json!("relay")),
        (json!("us"), json!("shop")),
        (json!("us"), json!([])),
        (json!("us"), Value::Null),
        (Value::Null, json!("relay")),
    ] {
        assert_eq!(with(iss, aud), Err(Refusal::Party));
    }
    assert!(admit(&hs256(), at(0), &token(&json!({"exp": 99, "iss": "anyone", "aud": "anything"}))).is_ok());
}

#[test]
fn claims_of_a_wrong_type_or_length_and_a_missing_end_are_refused() {
    let long = "x".repeat(Realms::MAX_NAME + 1);
    for claims in [
        json!({}),
        json!({"exp": "1000"}),
        json!({"exp": null}),
        json!({"exp": 1000, "nbf": "0"}),
        json!({"exp": 1000, "iss": 1}),
        json!({"exp": 1000, "aud": {"a": 1}}),
        json!({"exp": 1000, "scope": 1}),
        json!({"exp": 1000, "scope": [1]}),
        json!({"exp": 1000, "realm": 1}),
        json!({"exp": 1000, "realm": long}),
        json!({"exp": 1000, "sub": "x".repeat(MAX_SUBJECT + 1)}),
        json!([1000]),
        json!("exp"),
    ] {
        assert_eq!(admit(&hs256(), at(900), &token(&claims)), Err(Refusal::Malformed), "{claims}");
    }
    let header = BASE64URL_NOPAD.encode(br#"{"alg":"HS256"}"#);
    let twice = BASE64URL_NOPAD.encode(br#"{"exp":1,"exp":1000}"#);
    let body = format!("{header}.{twice}");
    let twice = format!("{body}.{}", BASE64URL_NOPAD.encode(&mac(SECRET, body.as_bytes())));
    assert_eq!(admit(&hs256(), at(900), &twice), Err(Refusal::Malformed));
}

#[test]
fn keys_are_read_in_their_usual_forms_and_weak_ones_refused() {
    assert!(JwtKey::hs256(&[0; 31]).is_none() && JwtKey::hs256(&[0; 32]).is_some());
    // `openssl pkey -pubout` of the key of RFC 8037.
    let pem = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEA11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=\n-----END PUBLIC KEY-----\n";
    let raw = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo";
    let bytes = |text: &str| match JwtKey::ed_dsa(text) {
        Some(JwtKey::EdDsa(key)) => Some(key),
        _ => None,
    };
    assert!(bytes(pem).is_some());
    assert_eq!(bytes(pem), bytes(&format!("{raw}\n")));
    let private = pem.replace("PUBLIC", "PRIVATE");
    for wrong in ["", "abc", &raw[1..], &private, &pem.replace("MCow", "MCox")] {
        assert!(bytes(wrong).is_none(), "{wrong}");
    }
    assert!(!format!("{:?}", hs256()).contains("thirty"));
}
