//! The statements for accounts, devices and contacts.

use super::mailboxes::{from_number, number, to_number};
use crate::limits::Limit;
use crate::store::{
    Account, AccountDevice, AccountDeviceId, DevicePin, LegacyDevice, MailboxId, NewAccountDevice, Party,
    StoreError, StoreLimits,
};
use rusqlite::types::Type;
use rusqlite::{Connection, Error, OptionalExtension, Params, Result as SqlResult, Row, params};
use std::str::FromStr;

/// Refuses one more account or legacy device at the limit.
fn check_parties(connection: &Connection, limits: &StoreLimits) -> Result<(), StoreError> {
    let count = |row: &Row<'_>| number(row, 0);
    let parties = connection.prepare_cached("SELECT count FROM parties")?.query_row([], count)?;
    if parties >= limits.parties {
        Limit::StoreParties.reached(limits.parties);
        return Err(StoreError::LimitExceeded);
    }
    Ok(())
}

pub(super) fn insert_account(
    connection: &Connection,
    limits: &StoreLimits,
    account: &Account,
) -> Result<(), StoreError> {
    check_parties(connection, limits)?;
    let statement = "INSERT INTO accounts (name, password_hash, identity_key, created_at)
        VALUES (?1, ?2, ?3, ?4) ON CONFLICT DO NOTHING";
    let values =
        params![account.name, account.password_hash, account.identity_key, to_number(account.created_at_ms)];
    change_one(connection, statement, values, StoreError::Exists)
}

pub(super) fn account(connection: &Connection, name: &str) -> Result<Option<Account>, StoreError> {
    let statement = "SELECT name, password_hash, identity_key, created_at FROM accounts WHERE name = ?1";
    let read = |row: &Row<'_>| {
        Ok(Account {
            name: row.get(0)?,
            password_hash: row.get(1)?,
            identity_key: row.get(2)?,
            created_at_ms: number(row, 3)?,
        })
    };
    Ok(connection.prepare_cached(statement)?.query_row([name], read).optional()?)
}

pub(super) fn set_password_hash(connection: &Connection, name: &str, hash: &str) -> Result<(), StoreError> {
    let statement = "UPDATE accounts SET password_hash = ?2 WHERE name = ?1";
    change_one(connection, statement, [name, hash], StoreError::NotFound)
}

pub(super) fn set_identity_key(
    connection: &Connection,
    name: &str,
    key: &[u8; 32],
) -> Result<(), StoreError> {
    let otherwise = account(connection, name)?.map_or(StoreError::NotFound, |_| StoreError::Exists);
    let statement = "UPDATE accounts SET identity_key = ?2 WHERE name = ?1 AND identity_key IS NULL";
    change_one(connection, statement, params![name, key], otherwise)
}

pub(super) fn insert_account_device(
    connection: &Connection,
    limits: &StoreLimits,
    device: &NewAccountDevice,
) -> Result<AccountDevice, StoreError> {
    if account(connection, &device.account)?.is_none() {
        return Err(StoreError::NotFound);
    }
    let others = account_devices(connection, &device.account)?;
    if others.iter().any(|other| other.details.signing_key == device.signing_key) {
        return Err(StoreError::Exists);
    }
    if others.len() as u64 >= limits.devices_per_account {
        Limit::StoreDevicesPerAccount.reached(limits.devices_per_account);
        return Err(StoreError::LimitExceeded);
    }
    let statement = "INSERT INTO account_devices
        (account, label, signing_key, encryption_key, signature, created_at)
        VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
    let NewAccountDevice { account, label, signing_key, encryption_key, signature, created_at_ms } = device;
    let created_at = to_number(*created_at_ms);
    let values = params![account, label, signing_key, encryption_key, signature, created_at];
    let id = connection.prepare_cached(statement)?.insert(values)?;
    let statement =
        "INSERT INTO mailboxes (owner, device, epoch) VALUES (?1, ?2, random() & 0x1FFFFFFFFFFFFF)";
    let owner = Party::User(account.clone()).to_string();
    let mailbox = connection.prepare_cached(statement)?.insert(params![owner, id])?;
    Ok(AccountDevice { id: AccountDeviceId(id), mailbox: MailboxId(mailbox), details: device.clone() })
}

pub(super) fn account_devices(
    connection: &Connection,
    account: &str,
) -> Result<Vec<AccountDevice>, StoreError> {
    let statement =
        "SELECT devices.id, mailboxes.id, label, signing_key, encryption_key, signature, created_at
        FROM account_devices AS devices JOIN mailboxes ON mailboxes.device = devices.id
        WHERE account = ?1 ORDER BY devices.id";
    let read = |row: &Row<'_>| {
        Ok(AccountDevice {
            id: AccountDeviceId(row.get(0)?),
            mailbox: MailboxId(row.get(1)?),
            details: NewAccountDevice {
                account: account.to_owned(),
                label: row.get(2)?,
                signing_key: row.get(3)?,
                encryption_key: row.get(4)?,
                signature: row.get(5)?,
                created_at_ms: number(row, 6)?,
            },
        })
    };
    rows(connection, statement, [account], read)
}

pub(super) fn set_device_label(
    connection: &Connection,
    account: &str,
    device: AccountDeviceId,
    label: &str,
) -> Result<(), StoreError> {
    let statement = "UPDATE account_devices SET label = ?3 WHERE id = ?1 AND account = ?2";
    change_one(connection, statement, params![device.0, account, label], StoreError::NotFound)
}

/// Removes a device, but not yet its mailbox, which is returned.
pub(super) fn remove_account_device(
    connection: &Connection,
    account: &str,
    device: AccountDeviceId,
) -> Result<MailboxId, StoreError> {
    let statement = "DELETE FROM account_devices WHERE id = ?1 AND account = ?2";
    change_one(connection, statement, params![device.0, account], StoreError::NotFound)?;
    let statement = "SELECT id FROM mailboxes WHERE device = ?1";
    Ok(MailboxId(connection.prepare_cached(statement)?.query_row([device.0], |row| row.get(0))?))
}

pub(super) fn remove_mailbox(connection: &Connection, mailbox: MailboxId) -> Result<(), StoreError> {
    for statement in [
        "DELETE FROM mailboxes WHERE id = ?1",
        "DELETE FROM messages WHERE mailbox = ?1",
        "DELETE FROM message_ids WHERE mailbox = ?1",
        "DELETE FROM mailbox_senders WHERE mailbox = ?1",
    ] {
        connection.prepare_cached(statement)?.execute([mailbox.0])?;
    }
    Ok(())
}

/// The columns for the pin, of which one is NULL.
fn pin_columns(pin: &DevicePin) -> (Option<[u8; 32]>, Option<String>) {
    match pin {
        DevicePin::Key(key) => (Some(*key), None),
        DevicePin::Network(network) => (None, Some(network.to_string())),
    }
}

pub(super) fn insert_legacy_device(
    connection: &Connection,
    limits: &StoreLimits,
    device: &LegacyDevice,
) -> Result<(), StoreError> {
    check_parties(connection, limits)?;
    let statement = "INSERT INTO legacy_devices (id, pinned_key, pinned_network, version, abilities)
        VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT DO NOTHING";
    change_legacy_device(connection, statement, device, StoreError::Exists)
}

pub(super) fn update_legacy_device(connection: &Connection, device: &LegacyDevice) -> Result<(), StoreError> {
    let statement = "UPDATE legacy_devices
        SET pinned_key = ?2, pinned_network = ?3, version = ?4, abilities = ?5 WHERE id = ?1";
    change_legacy_device(connection, statement, device, StoreError::NotFound)
}

fn change_legacy_device(
    connection: &Connection,
    statement: &str,
    device: &LegacyDevice,
    otherwise: StoreError,
) -> Result<(), StoreError> {
    let (key, network) = pin_columns(&device.pin);
    let abilities = serde_json::Value::from(device.abilities.as_slice()).to_string();
    change_one(connection, statement, params![device.id, key, network, device.version, abilities], otherwise)
}

pub(super) fn legacy_device(connection: &Connection, id: &str) -> Result<Option<LegacyDevice>, StoreError> {
    let statement = "SELECT pinned_key, pinned_network, version, abilities FROM legacy_devices WHERE id = ?1";
    let read = |row: &Row<'_>| {
        let pin = match row.get::<_, Option<[u8; 32]>>(0)? {
            Some(key) => DevicePin::Key(key),
            None => DevicePin::Network(parsed(row, 1)?),
        };
        let abilities = serde_json::from_str(row.get_ref(3)?.as_str()?);
        Ok(LegacyDevice {
            id: id.to_owned(),
            pin,
            version: row.get(2)?,
            abilities: abilities.map_err(|error| conversion(3, error))?,
        })
    };
    Ok(connection.prepare_cached(statement)?.query_row([id], read).optional()?)
}

pub(super) fn insert_contact(
    connection: &Connection,
    limits: &StoreLimits,
    owner: &str,
    contact: &str,
) -> Result<(), StoreError> {
    if has_contact(connection, owner, contact)? {
        return Err(StoreError::Exists);
    }
    let statement = "SELECT count(*) FROM contacts WHERE owner = ?1";
    let count: i64 = connection.prepare_cached(statement)?.query_row([owner], |row| row.get(0))?;
    if from_number(count) >= limits.contacts_per_party {
        Limit::StoreContactsPerParty.reached(limits.contacts_per_party);
        return Err(StoreError::LimitExceeded);
    }
    let statement = "INSERT INTO contacts (owner, contact) VALUES (?1, ?2)";
    change_one(connection, statement, [owner, contact], StoreError::Exists)
}

pub(super) fn remove_contact(connection: &Connection, owner: &str, contact: &str) -> Result<(), StoreError> {
    let statement = "DELETE FROM contacts WHERE owner = ?1 AND contact = ?2";
    change_one(connection, statement, [owner, contact], StoreError::NotFound)
}

pub(super) fn contacts(connection: &Connection, owner: &str) -> Result<Vec<Party>, StoreError> {
    let statement = "SELECT contact FROM contacts WHERE owner = ?1 ORDER BY contact";
    rows(connection, statement, [owner], |row| parsed(row, 0))
}

pub(super) fn mutual_contacts(connection: &Connection, owner: &str) -> Result<Vec<Party>, StoreError> {
    let statement = "SELECT own.contact FROM contacts AS own
        JOIN contacts AS other ON other.owner = own.contact AND other.contact = own.owner
        WHERE own.owner = ?1 ORDER BY own.contact";
    rows(connection, statement, [owner], |row| parsed(row, 0))
}

pub(super) fn has_contact(connection: &Connection, owner: &str, contact: &str) -> Result<bool, StoreError> {
    let statement = "SELECT 1 FROM contacts WHERE owner = ?1 AND contact = ?2";
    Ok(connection.prepare_cached(statement)?.exists([owner, contact])?)
}

/// Runs a statement that changes one row, or none: then it fails with `otherwise`.
fn change_one(
    connection: &Connection,
    statement: &str,
    values: impl Params,
    otherwise: StoreError,
) -> Result<(), StoreError> {
    match connection.prepare_cached(statement)?.execute(values)? {
        0 => Err(otherwise),
        _ => Ok(()),
    }
}

/// Reads all rows.
pub(super) fn rows<T>(
    connection: &Connection,
    statement: &str,
    values: impl Params,
    read: impl FnMut(&Row<'_>) -> SqlResult<T>,
) -> Result<Vec<T>, StoreError> {
    let mut statement = connection.prepare_cached(statement)?;
    let rows: SqlResult<Vec<T>> = statement.query_map(values, read)?.collect();
    Ok(rows?)
}

/// Reads a column that holds the text form of a value.
pub(super) fn parsed<T: FromStr>(row: &Row<'_>, column: usize) -> SqlResult<T>
where
    T::Err: std::error::Error + Send + Sync + 'static,
{
    row.get_ref(column)?.as_str()?.parse().map_err(|error| conversion(column, error))
}

fn conversion(column: usize, error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::FromSqlConversionFailure(column, Type::Text, Box::new(error))
}
