//! Disks that come and go while the guest runs, and disks that have no room.

use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::broadcast::error::RecvError;
use tokio::time::{Instant, timeout_at};

use crate::disk::{Back, Disk, id_of, node_of, slot_of_node};
use crate::qmp::{Qmp, QmpError, unexpected};

/// How a disk that was to be unplugged is now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unplugged {
    /// The guest has let it go.
    Gone,
    /// The guest says no.
    Refused,
    /// The guest did not answer in time. It may still let it go.
    Late,
}

impl Qmp {
    /// Slots of the disks that are plugged in, virtio and SCSI and IDE.
    ///
    /// # Errors
    /// [`QmpError`].
    pub async fn plugged(&self) -> Result<Vec<u8>, QmpError> {
        #[derive(Deserialize)]
        struct Device {
            name: String,
        }
        let command = "qom-list";
        let path = json!({"path": "/machine/peripheral"});
        let answer = self.execute(command, Some(path)).await?;
        let devices: Vec<Device> =
            serde_json::from_value(answer).map_err(|error| unexpected(command, error))?;
        let slots = devices
            .iter()
            .filter_map(|device| device.name.strip_prefix("drive")?.parse().ok());
        Ok(slots.collect())
    }

    /// Plugs a disk in, which diskd serves already. Whatever fails leaves nothing.
    ///
    /// # Errors
    /// [`QmpError`].
    pub async fn plug(&self, disk: &Disk) -> Result<(), QmpError> {
        // Left of one that went without us.
        self.disconnect(disk.slot).await;
        let (command, connection) = match &disk.back {
            Back::VhostUser(path) => ("chardev-add", disk.chardev(path)),
            Back::Nbd(path) => ("blockdev-add", disk.blockdev(path)),
        };
        self.execute(command, Some(connection)).await?;
        let plugged = self.execute("device_add", Some(disk.device(None))).await;
        if plugged.is_err() {
            self.disconnect(disk.slot).await;
        }
        plugged.map(drop)
    }

    /// Asks the guest to let the disk in `slot` go, and waits for it until `limit` has passed.
    ///
    /// # Errors
    /// [`QmpError`].
    pub async fn unplug(&self, slot: u8, limit: Duration) -> Result<Unplugged, QmpError> {
        let deadline = Instant::now() + limit;
        let id = id_of(slot);
        let mut events = self.events();
        match self.execute("device_del", Some(json!({"id": id}))).await {
            Ok(_) => {}
            // An earlier request that the guest has not answered yet.
            Err(QmpError::Refused { reason, .. }) if reason.contains("in the process") => {}
            Err(_) if !self.plugged().await?.contains(&slot) => {
                self.disconnect(slot).await;
                return Ok(Unplugged::Gone);
            }
            Err(error) => return Err(error),
        }
        loop {
            let event = match timeout_at(deadline, events.recv()).await {
                Ok(Ok(event)) => event,
                Ok(Err(RecvError::Closed)) => return Err(QmpError::Gone),
                Ok(Err(RecvError::Lagged(_))) if self.plugged().await?.contains(&slot) => continue,
                Ok(Err(RecvError::Lagged(_))) => break,
                Err(_elapsed) => return Ok(Unplugged::Late),
            };
            match event.name.as_str() {
                _ if event.data["device"] != id => {}
                "DEVICE_DELETED" => break,
                "DEVICE_UNPLUG_GUEST_ERROR" => return Ok(Unplugged::Refused),
                _ => {}
            }
        }
        self.disconnect(slot).await;
        Ok(Unplugged::Gone)
    }

    /// Waits until the disk in `slot`, which the guest was asked for, is gone.
    ///
    /// # Errors
    /// [`QmpError`]: QEMU has ended.
    pub async fn unplugged(&self, slot: u8) -> Result<(), QmpError> {
        let mut events = self.events();
        while self.plugged().await?.contains(&slot) {
            if let Err(RecvError::Closed) = events.recv().await {
                return Err(QmpError::Gone);
            }
        }
        self.disconnect(slot).await;
        Ok(())
    }

    /// Removes the connection of a disk that is not plugged in, if there is one.
    async fn disconnect(&self, slot: u8) {
        let node = node_of(slot);
        // One of them is not there.
        let _ = self
            .execute("blockdev-del", Some(json!({"node-name": node})))
            .await;
        let _ = self
            .execute("chardev-remove", Some(json!({"id": node})))
            .await;
    }

    /// Slots of the disks whose file system had no room for what the guest wrote, over NBD. Until
    /// the guest goes on.
    ///
    /// # Errors
    /// [`QmpError`].
    pub async fn without_room(&self) -> Result<Vec<u8>, QmpError> {
        let answer = self.execute("query-block", None).await?;
        let Value::Array(devices) = answer else {
            return Err(unexpected("query-block", "it is no list"));
        };
        let slots = devices
            .iter()
            .filter(|device| device["io-status"] == "nospace")
            .filter_map(|device| slot_of_node(device["inserted"]["node-name"].as_str()?));
        Ok(slots.collect())
    }
}
