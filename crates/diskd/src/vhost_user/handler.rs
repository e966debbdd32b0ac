//! Answers vhost-user messages of one connection, on the message thread.
//!
//! A queue runs while it has a kick descriptor and is enabled:
//!
//! ```text
//!   SET_VRING_NUM, _BASE, _ADDR    noted
//!   SET_VRING_KICK, _ENABLE 1      both there: Order::Start
//!   SET_VRING_ENABLE 0             Order::Stop (drains), the next index is noted
//!   GET_VRING_BASE                 the same, and the kick descriptor is forgotten
//!
//!   SET_LOG_BASE, _FEATURES with LOG_ALL, _VRING_ADDR with LOG
//!                                  the only changes while a queue runs: Order::Log, ::LogUsed
//! ```
//!
//! An error ends the connection; the front end sees why in the log of this process.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;

use ring::Sender;
use vhost::VhostUserMemoryRegionBase;
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig,
    VhostUserSharedMsg, VhostUserSingleMemoryRegion, VhostUserVirtioFeatures,
    VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{Error, GpuBackend, Result, VhostUserBackendReqHandlerMut};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use super::channel::Channel;
use super::front::{Order, Reply};
use super::inflight::InflightArea;
use super::log::DirtyLog;
use super::memory::{MAX_REGIONS, Memory, RegionSpec};
use super::queue::QueueSetup;
use super::split_ring::{MAX_SIZE, RingError, RingPlace};
use super::{DiskShape, MAX_QUEUES};

/// Everything that is written to guest memory is marked in the log.
const LOG_ALL: u64 = VhostUserVirtioFeatures::LOG_ALL.bits();

/// A queue as the front end has described it so far.
#[derive(Default)]
struct Vring {
    size: u16,
    base: u16,
    /// Descriptor table, available ring, used ring, in the front end's address space.
    place: Option<(u64, u64, u64)>,
    /// Guest address of the used ring, if it is to be marked in the log of dirty memory.
    log_used_at: Option<u64>,
    kick: Option<File>,
    call: Option<File>,
    error: Option<File>,
    enabled: bool,
    running: bool,
}

/// The state of one connection.
pub(super) struct Handler {
    orders: Sender<Order>,
    disk: Arc<DiskShape>,
    channel: Arc<Channel>,
    memory: Arc<Memory>,
    /// Acknowledged by the front end.
    features: u64,
    vrings: Vec<Vring>,
    inflight: Option<InflightArea>,
    /// Used as long as LOG_ALL is acknowledged.
    log: Option<DirtyLog>,
}

fn failed(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::ReqHandlerError(io::Error::other(error))
}

fn unsupported<T>(what: &'static str) -> Result<T> {
    Err(Error::InvalidOperation(what))
}

fn duplicate(file: Option<&File>) -> Result<Option<OwnedFd>> {
    let copy = file.map(File::try_clone).transpose();
    Ok(copy.map_err(Error::ReqHandlerError)?.map(OwnedFd::from))
}

impl Handler {
    pub(super) fn new(orders: Sender<Order>, disk: Arc<DiskShape>, channel: Arc<Channel>) -> Self {
        Self {
            orders,
            disk,
            channel,
            memory: Arc::default(),
            features: 0,
            vrings: (0..MAX_QUEUES).map(|_| Vring::default()).collect(),
            inflight: None,
            log: None,
        }
    }

    /// Gives an order and waits until it is carried out.
    fn order<T>(&self, make: impl FnOnce(Reply<T>) -> Order) -> Result<T> {
        let (reply, answer) = sync_channel(1);
        // Both fail only for want of an owner.
        let sent = self.orders.send(make(reply)).is_ok();
        let answer = if sent { answer.recv().ok() } else { None };
        answer.ok_or_else(|| failed("the owner of the disk has ended"))
    }

    fn vring(&mut self, index: u32) -> Result<(u16, &mut Vring)> {
        let number = u16::try_from(index).or(Err(Error::InvalidParam))?;
        let vring = self.vrings.get_mut(usize::from(number));
        vring
            .map(|vring| (number, vring))
            .ok_or(Error::InvalidParam)
    }

    /// A queue whose shape may change: one that doesn't run.
    fn still_vring(&mut self, index: u32) -> Result<&mut Vring> {
        let (_, vring) = self.vring(index)?;
        if vring.running {
            return unsupported("a running queue cannot change its shape");
        }
        Ok(vring)
    }

    fn has(&self, feature: u32) -> bool {
        self.features & (1 << feature) != 0
    }

    fn is_running(&self) -> bool {
        self.vrings.iter().any(|vring| vring.running)
    }

    /// Marks what is written in the log that is in force.
    fn use_log(&self) -> Result<()> {
        let log = self.log.clone().filter(|_| self.features & LOG_ALL != 0);
        self.order(|reply| Order::Log(log, reply))
    }

    fn start_if_ready(&mut self, index: u16) -> Result<()> {
        let vring = &self.vrings[usize::from(index)];
        let (Some(kick), Some(place), true, false) =
            (&vring.kick, vring.place, vring.enabled, vring.running)
        else {
            return Ok(());
        };
        let (descriptors, available, used) = place;
        let Some(kick) = duplicate(Some(kick))? else {
            return Ok(());
        };
        let setup = Box::new(QueueSetup {
            index,
            place: RingPlace {
                size: vring.size,
                descriptors,
                available,
                used,
            },
            next_available: vring.base,
            memory: Arc::clone(&self.memory),
            inflight: self.inflight.clone(),
            kick,
            call: duplicate(vring.call.as_ref())?,
            error: duplicate(vring.error.as_ref())?,
            event_idx: self.has(VIRTIO_RING_F_EVENT_IDX),
            indirect: self.has(VIRTIO_RING_F_INDIRECT_DESC),
            log_used_at: vring.log_used_at,
        });
        if !self.is_running() {
            self.channel.tell(self.disk.size());
        }
        self.order(|reply| Order::Start(setup, reply))?
            .map_err(failed)?;
        self.vrings[usize::from(index)].running = true;
        Ok(())
    }

    /// Stops a queue, if it runs, and notes where it stopped.
    fn stop(&mut self, index: u16) -> Result<()> {
        if !self.vrings[usize::from(index)].running {
            return Ok(());
        }
        let next = self.order(|reply| Order::Stop(index, reply))?;
        let vring = &mut self.vrings[usize::from(index)];
        vring.running = false;
        vring.base = next.unwrap_or(vring.base);
        Ok(())
    }

    fn use_memory(&mut self, memory: Memory) -> Result<()> {
        let memory = Arc::new(memory);
        self.memory = Arc::clone(&memory);
        self.order(|reply| Order::Memory(memory, reply))
    }
}

impl VhostUserBackendReqHandlerMut for Handler {
    fn set_owner(&mut self) -> Result<()> {
        Ok(())
    }

    fn reset_owner(&mut self) -> Result<()> {
        unsupported("RESET_OWNER is deprecated")
    }

    fn reset_device(&mut self) -> Result<()> {
        unsupported("RESET_DEVICE was not offered")
    }

    fn get_features(&mut self) -> Result<u64> {
        Ok(self.disk.features())
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        if features & !self.disk.features() != 0 {
            return Err(Error::FeatureMismatch);
        }
        let changed = features ^ self.features;
        if changed & !LOG_ALL != 0 && self.is_running() {
            return unsupported("features cannot change while a queue runs");
        }
        self.features = features;
        if changed & LOG_ALL != 0 {
            self.use_log()?;
            if features & LOG_ALL == 0 {
                self.log = None;
            }
        }
        // Without the protocol features there is no SET_VRING_ENABLE.
        if features & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() == 0 {
            for vring in &mut self.vrings {
                vring.enabled = true;
            }
        }
        Ok(())
    }

    fn set_mem_table(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy: Option<bool>,
    ) -> Result<Option<Vec<VhostUserMemoryRegionBase>>> {
        let mut memory = Memory::default();
        for (region, file) in regions.iter().zip(&files) {
            let spec = RegionSpec {
                guest: region.guest_phys_addr,
                user: region.user_addr,
                len: region.memory_size,
                offset: region.mmap_offset,
            };
            memory = memory.with(spec, file).map_err(failed)?;
        }
        self.use_memory(memory)?;
        Ok(None)
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> Result<()> {
        let size = u16::try_from(num)
            .ok()
            .filter(|size| *size <= MAX_SIZE && size.is_power_of_two());
        self.still_vring(index)?.size = size.ok_or_else(|| failed(RingError::Size(num)))?;
        Ok(())
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        flags: VhostUserVringAddrFlags,
        descriptor: u64,
        used: u64,
        available: u64,
        log: u64,
    ) -> Result<()> {
        let place = Some((descriptor, available, used));
        let marked = flags.contains(VhostUserVringAddrFlags::VHOST_VRING_F_LOG);
        let log_used_at = marked.then_some(log);
        let (number, vring) = self.vring(index)?;
        if vring.running && vring.place != place {
            return unsupported("a running queue cannot change its place");
        }
        vring.place = place;
        vring.log_used_at = log_used_at;
        self.order(|reply| Order::LogUsed(number, log_used_at, reply))
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        let base = u16::try_from(base).or(Err(Error::InvalidParam))?;
        self.still_vring(index)?.base = base;
        Ok(())
    }

    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        let (number, _) = self.vring(index)?;
        self.stop(number)?;
        let (_, vring) = self.vring(index)?;
        vring.kick = None;
        Ok(VhostUserVringState::new(index, vring.base.into()))
    }

    fn set_vring_kick(&mut self, index: u8, file: Option<File>) -> Result<()> {
        let Some(file) = file else {
            return unsupported("a queue needs a kick descriptor; polling is not supported");
        };
        self.still_vring(index.into())?.kick = Some(file);
        self.start_if_ready(index.into())
    }

    fn set_vring_call(&mut self, index: u8, file: Option<File>) -> Result<()> {
        let (number, vring) = self.vring(index.into())?;
        vring.call = file;
        let call = duplicate(vring.call.as_ref())?;
        self.order(|reply| Order::Call(number, call, reply))
    }

    fn set_vring_err(&mut self, index: u8, file: Option<File>) -> Result<()> {
        let (number, vring) = self.vring(index.into())?;
        vring.error = file;
        let error = duplicate(vring.error.as_ref())?;
        self.order(|reply| Order::Error(number, error, reply))
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        Ok(VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::INFLIGHT_SHMFD
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
            | VhostUserProtocolFeatures::BACKEND_REQ
            | VhostUserProtocolFeatures::LOG_SHMFD)
    }

    fn set_protocol_features(&mut self, features: u64) -> Result<()> {
        let offered = self.get_protocol_features()?.bits();
        if features & !offered != 0 {
            return Err(Error::FeatureMismatch);
        }
        Ok(())
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(MAX_QUEUES.into())
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        let (number, vring) = self.vring(index)?;
        vring.enabled = enable;
        if enable {
            self.start_if_ready(number)
        } else {
            self.stop(number)
        }
    }

    fn get_config(
        &mut self,
        offset: u32,
        size: u32,
        _flags: VhostUserConfigFlags,
    ) -> Result<Vec<u8>> {
        // The transport has checked that this is inside the 256 bytes of a configuration space;
        // fields of later specifications read as zeroes.
        let disk_size = self.disk.size();
        let bytes = self.disk.config_space(disk_size);
        if offset == 0 && size >= 8 {
            self.channel.read(disk_size);
        }
        Ok((offset..offset.saturating_add(size))
            .map(|at| bytes.get(at as usize).copied().unwrap_or(0))
            .collect())
    }

    fn set_config(&mut self, offset: u32, _: &[u8], _: VhostUserConfigFlags) -> Result<()> {
        // VIRTIO 1.2, section 5.2.5: without CONFIG_WCE there is no writable field.
        tracing::debug!(offset, "the guest wrote to its read-only configuration");
        Ok(())
    }

    fn set_gpu_socket(&mut self, _: GpuBackend) -> Result<()> {
        unsupported("a disk is not a GPU")
    }

    fn get_shared_object(&mut self, _: VhostUserSharedMsg) -> Result<File> {
        unsupported("shared objects were not offered")
    }

    fn get_inflight_fd(
        &mut self,
        inflight: &VhostUserInflight,
    ) -> Result<(VhostUserInflight, File)> {
        let (queues, size) = (inflight.num_queues, inflight.queue_size);
        if queues > MAX_QUEUES || size > MAX_SIZE {
            return Err(Error::InvalidParam);
        }
        let (file, len) = InflightArea::create(queues, size).map_err(failed)?;
        Ok((VhostUserInflight::new(len, 0, queues, size), file))
    }

    fn set_inflight_fd(&mut self, inflight: &VhostUserInflight, file: File) -> Result<()> {
        let (queues, size) = (inflight.num_queues, inflight.queue_size);
        if queues > MAX_QUEUES || size > MAX_SIZE {
            return Err(Error::InvalidParam);
        }
        if self.is_running() {
            return unsupported("the in-flight area cannot change while a queue runs");
        }
        let (offset, len) = (inflight.mmap_offset, inflight.mmap_size);
        let area = InflightArea::open(&file, offset, len, queues, size).map_err(failed)?;
        self.inflight = Some(area);
        Ok(())
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        Ok(MAX_REGIONS as u64)
    }

    fn add_mem_region(
        &mut self,
        region: &VhostUserSingleMemoryRegion,
        file: File,
        _postcopy: Option<bool>,
    ) -> Result<Option<VhostUserMemoryRegionBase>> {
        let spec = RegionSpec {
            guest: region.guest_phys_addr,
            user: region.user_addr,
            len: region.memory_size,
            offset: region.mmap_offset,
        };
        let memory = self.memory.with(spec, &file).map_err(failed)?;
        self.use_memory(memory)?;
        Ok(None)
    }

    fn remove_mem_region(&mut self, region: &VhostUserSingleMemoryRegion) -> Result<()> {
        let (guest, user, len) = (region.guest_phys_addr, region.user_addr, region.memory_size);
        let memory = self.memory.without(guest, user, len).map_err(failed)?;
        self.use_memory(memory)
    }

    fn set_device_state_fd(
        &mut self,
        _: VhostTransferStateDirection,
        _: VhostTransferStatePhase,
        _: File,
    ) -> Result<Option<File>> {
        unsupported("transfer of device state was not offered")
    }

    fn check_device_state(&mut self) -> Result<()> {
        unsupported("transfer of device state was not offered")
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        unsupported("shared memory regions were not offered")
    }

    fn set_log_base(&mut self, log: &VhostUserLog, file: File) -> Result<()> {
        let log = DirtyLog::open(&file, log.mmap_offset, log.mmap_size).map_err(failed)?;
        self.log = Some(log);
        // Nothing is marked in the last one any more when the front end gets its answer.
        self.use_log()
    }
}
