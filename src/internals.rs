//! What this package's own benchmarks and fuzz targets use of the library besides its public API. Not part of the API: anything here
//! changes without notice.
#![allow(missing_docs, reason = "each item is documented where it is defined")]

pub mod gateway {
    pub use crate::gateway::config::RouterConfig;
    pub use crate::gateway::endpoint::EndpointKey;
    pub use crate::gateway::machine::Router;
    pub use crate::gateway::{Duplicates, Limits, Times};
    pub mod handshake {
        pub use crate::gateway::handshake::Key;
    }
    pub mod machine {
        pub use crate::gateway::machine::{Output, ReadAction};
    }
    pub mod token {
        pub use crate::gateway::token::{TokenClaims, TokenIssuer};
    }
    pub mod wire {
        pub use crate::gateway::wire::*;
    }
}

pub mod load {
    pub use crate::load::{
        GatewayLoad, GatewayReport, Load, LoadTimes, LoadTransport, RunControl, Target, process,
    };
    pub mod gateway {
        pub use crate::load::gateway::{HandshakeKind, MessageDirection, Middlebox};
    }
    pub mod histogram {
        pub use crate::load::histogram::Histogram;
    }
    pub mod signaling {
        pub mod websocket_clients {
            pub use crate::load::signaling::websocket_clients::WebSocketClients;
        }
    }
}

pub mod limits {
    pub use crate::limits::Rate;
}

pub mod net {
    pub use crate::net::{proxy, time};
    pub mod dtls_cookie {
        pub use crate::net::dtls_cookie::{ClientHello, CookieExchange, HelloVerdict, is_client_hello};
    }
}

#[cfg(feature = "mesh")]
pub mod mesh {
    pub use crate::agent::mesh::fuzzing::{digest, machine, record};
}

#[cfg(feature = "messaging")]
pub mod messaging {
    pub use crate::messaging::{
        commands, config, counters, crypto, machine, password, store_calls, store_request, wire,
    };
}

#[cfg(feature = "messaging")]
pub mod store {
    pub use crate::store::*;
}

pub mod signaling {
    pub use crate::signaling::{
        Config, ConnId, Destination, Hub, HubMessage, Limits, NodeId, NotifyFrom, Output, Rate, ServerPort,
        Undelivered,
    };
    pub mod wire {
        pub use crate::signaling::wire::*;
    }
}

pub mod turn_server {
    pub use crate::turn_server::config::SharedState;
    pub use crate::turn_server::*;
    pub mod auth {
        pub use crate::turn_server::auth::{
            AuthError, Authenticator, AuthenticatorConfig, Credentials, LookupCacheConfig, LookupResult,
            RealmCredentials, RevocationList, TokenKey, UserKeys,
        };
    }
    pub mod wire {
        pub use crate::turn_wire::*;
    }
}
