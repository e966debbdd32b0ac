//! A bank on several disks: money moves between accounts, and the sum stays.
//!
//! Each account is a block of a disk, with its balance and the last transfer that changed it. One
//! transfer is two writes, on two disks, one after the other; nothing is flushed between them:
//!
//! ```text
//!   transfer 7, 120 from account 3 of disk 0 to account 9 of disk 2
//!
//!   disk 0, account 3:  [ balance - 120 | 7 | paid 120 to account 9 of disk 2 ]    written first
//!   disk 2, account 9:  [ balance + 120 | 7 | received ]                           then
//!                                            then transfer 8
//! ```
//!
//! A [point](crate::workload::Cut::Point) of all disks holds exactly the writes issued before one
//! instant. So it has both writes of every transfer but the newest, and of that perhaps the first alone:
//! then what was paid and not received is added, and the sum is right. If one disk were cut a moment
//! before another, a transfer between them would have its second write without its first, or an older one
//! its first without its second, and the sum would be wrong by that. A transfer of which both are missing
//! leaves the sum as it is; so each write names the one before it as well, which must be there.
//!
//! The same code runs in the guest (`pollux-bank`) and judges images on the host.

use std::io;

use crate::Rng;
use crate::workload::{BLOCK, Disk};

#[cfg(test)]
mod tests;

/// Accounts on each disk, spread over all of it.
pub const ACCOUNTS: u64 = 64;
/// What each account begins with.
const BEGIN: u64 = 1_000_000;
/// Most that a transfer moves.
const MOST: u64 = 1000;

const MAGIC: &[u8; 8] = b"PLXBANK1";
const HASH_AT: usize = BLOCK - 32;
/// In an account's block, after the magic.
const WORDS: usize = 9;

/// What a disk of the bank is read by: fills a block from a byte offset.
pub type Read<'a> = dyn FnMut(u64, &mut [u8]) -> io::Result<()> + 'a;

/// An account: which one, of which disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    disk: u64,
    account: u64,
}

const FIRST: Place = Place {
    disk: 0,
    account: 0,
};

/// What an account's block holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Account {
    place: Place,
    balance: u64,
    /// The transfer that changed it last; 0: none did.
    transfer: u64,
    /// What that one paid from here, and to whom; 0 if it paid to here.
    paid: u64,
    to: Place,
    /// What was written just before.
    before: Place,
}

/// A block that can be written with `O_DIRECT`.
#[repr(C, align(4096))]
struct Block([u8; BLOCK]);

impl Account {
    /// The transfer that was written just before: of a payment, the one before it.
    fn transfer_before(&self) -> u64 {
        self.transfer.saturating_sub(u64::from(self.paid > 0))
    }

    fn words(&self) -> [u64; WORDS] {
        let Self {
            place, to, before, ..
        } = self;
        [
            place.disk,
            place.account,
            self.balance,
            self.transfer,
            self.paid,
            to.disk,
            to.account,
            before.disk,
            before.account,
        ]
    }

    fn to_block(self) -> Block {
        let mut block = Block([0; BLOCK]);
        block.0[..8].copy_from_slice(MAGIC);
        for (at, word) in (8..).step_by(8).zip(self.words()) {
            block.0[at..at + 8].copy_from_slice(&word.to_le_bytes());
        }
        let hash = blake3::hash(&block.0[..HASH_AT]);
        block.0[HASH_AT..].copy_from_slice(hash.as_bytes());
        block
    }

    fn from_block(block: &Block) -> Option<Self> {
        let sealed = blake3::hash(&block.0[..HASH_AT]);
        if block.0[..8] != MAGIC[..] || block.0[HASH_AT..] != sealed.as_bytes()[..] {
            return None;
        }
        let words = block.0[8..].chunks_exact(8).take(WORDS);
        let words = words.map(|word| {
            word.iter()
                .rev()
                .fold(0, |sum, byte| sum << 8 | u64::from(*byte))
        });
        let words: Vec<u64> = words.collect();
        let place = |at: usize| Place {
            disk: words[at],
            account: words[at + 1],
        };
        Some(Self {
            place: place(0),
            balance: words[2],
            transfer: words[3],
            paid: words[4],
            to: place(5),
            before: place(7),
        })
    }
}

/// Where an account lies on a disk of `len` bytes.
fn offset(len: u64, account: u64) -> u64 {
    let stride = len / BLOCK as u64 / ACCOUNTS;
    account * stride * BLOCK as u64
}

/// What the disks of a bank prove.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Balanced {
    /// The newest transfer.
    pub transfers: u64,
    /// What that one paid and nobody received yet.
    pub in_flight: u64,
}

/// Why disks are those of no bank, or not of one instant.
#[derive(Debug, thiserror::Error)]
pub enum BankError {
    /// The operating system refused.
    #[error("disk {disk} cannot be read")]
    Read {
        /// The disk.
        disk: u64,
        /// Why.
        source: io::Error,
    },
    /// Nobody opened an account there.
    #[error("account {account} of disk {disk} was never opened")]
    NoAccount {
        /// The disk.
        disk: u64,
        /// The account.
        account: u64,
    },
    /// Not what anybody wrote there.
    #[error("account {account} of disk {disk} is damaged, or another one's")]
    Damaged {
        /// The disk.
        disk: u64,
        /// The account.
        account: u64,
    },
    /// A write is there without the one that was issued before it.
    #[error(
        "account {account} of disk {disk} lacks transfer {transfer}, and the write after that is there"
    )]
    Missing {
        /// The disk.
        disk: u64,
        /// The account.
        account: u64,
        /// The transfer.
        transfer: u64,
    },
    /// Writes are there without others that were issued before them.
    #[error("after transfer {transfers}, with {in_flight} in flight, there is {sum} of {right}")]
    Sum {
        /// The newest transfer.
        transfers: u64,
        /// What it paid and nobody received.
        in_flight: u64,
        /// What there is, with that.
        sum: u64,
        /// What there must be.
        right: u64,
    },
}

/// All accounts as they are on the disks.
struct Books(Vec<Vec<Account>>);

impl Books {
    fn read(disks: &mut [(u64, &mut Read<'_>)]) -> Result<Self, BankError> {
        let mut all = Vec::new();
        for (disk, (len, read)) in (0..).zip(disks) {
            let mut accounts = Vec::new();
            for account in 0..ACCOUNTS {
                let place = Place { disk, account };
                let mut block = Block([0; BLOCK]);
                read(offset(*len, account), &mut block.0)
                    .map_err(|source| BankError::Read { disk, source })?;
                let found = Account::from_block(&block).filter(|found| found.place == place);
                accounts.push(found.ok_or_else(|| {
                    if block.0.iter().all(|byte| *byte == 0) {
                        BankError::NoAccount { disk, account }
                    } else {
                        BankError::Damaged { disk, account }
                    }
                })?);
            }
            all.push(accounts);
        }
        Ok(Self(all))
    }

    fn all(&self) -> impl Iterator<Item = &Account> {
        self.0.iter().flatten()
    }

    fn at(&self, place: Place) -> Option<&Account> {
        let disk = self.0.get(usize::try_from(place.disk).ok()?)?;
        disk.get(usize::try_from(place.account).ok()?)
    }

    fn put(&mut self, account: Account) {
        let known = self.all_mut().find(|known| known.place == account.place);
        *known.expect("an account of the bank") = account;
    }

    fn all_mut(&mut self) -> impl Iterator<Item = &mut Account> {
        self.0.iter_mut().flatten()
    }

    /// The account that the newest transfer was paid from, if nobody received it yet.
    fn unreceived(&self) -> Option<Account> {
        let newest = self.all().map(|account| account.transfer).max()?;
        let mut of_it = self.all().filter(|account| account.transfer == newest);
        let payer = of_it.next().filter(|account| account.paid > 0)?;
        of_it.next().is_none().then_some(*payer)
    }

    fn judge(&self) -> Result<Balanced, BankError> {
        for account in self.all() {
            let (before, transfer) = (account.before, account.transfer_before());
            let there = self.at(before).map_or(0, |known| known.transfer);
            if there < transfer {
                return Err(BankError::Missing {
                    disk: before.disk,
                    account: before.account,
                    transfer,
                });
            }
        }
        let transfers = self
            .all()
            .map(|account| account.transfer)
            .max()
            .unwrap_or(0);
        let in_flight = self.unreceived().map_or(0, |payer| payer.paid);
        let sum = self.all().map(|account| account.balance).sum::<u64>() + in_flight;
        let right = self.all().count() as u64 * BEGIN;
        if sum == right {
            Ok(Balanced {
                transfers,
                in_flight,
            })
        } else {
            Err(BankError::Sum {
                transfers,
                in_flight,
                sum,
                right,
            })
        }
    }
}

/// Judges disks, each by its length and what reads it, in the order in which the bank has them.
///
/// # Errors
/// [`BankError`]: what is wrong.
pub fn judge(disks: &mut [(u64, &mut Read<'_>)]) -> Result<Balanced, BankError> {
    Books::read(disks)?.judge()
}

/// A bank that is open.
pub struct Bank<'a> {
    disks: Vec<&'a dyn Disk>,
    books: Books,
    next: u64,
    /// What was written last.
    last: Place,
    rng: Rng,
}

impl<'a> Bank<'a> {
    /// Opens every account, on disks that hold nothing.
    ///
    /// # Errors
    /// What a disk says.
    pub fn found(disks: Vec<&'a dyn Disk>, rng: Rng) -> io::Result<Self> {
        let mut all = Vec::new();
        for (disk, device) in (0..).zip(&disks) {
            let mut accounts = Vec::new();
            for account in 0..ACCOUNTS {
                let place = Place { disk, account };
                let opened = Account {
                    place,
                    balance: BEGIN,
                    transfer: 0,
                    paid: 0,
                    to: place,
                    before: place,
                };
                device.write(offset(device.len(), account), &opened.to_block().0)?;
                accounts.push(opened);
            }
            device.flush()?;
            all.push(accounts);
        }
        Ok(Self {
            disks,
            books: Books(all),
            next: 1,
            last: FIRST,
            rng,
        })
    }

    /// Goes on with a bank, once it is judged; what was in flight is received.
    ///
    /// # Errors
    /// [`BankError`]
    pub fn open(disks: Vec<&'a dyn Disk>, rng: Rng) -> Result<(Self, Balanced), BankError> {
        let mut reads: Vec<_> = disks
            .iter()
            .map(|disk| (disk.len(), |at, block: &mut [u8]| disk.read(at, block)))
            .collect();
        let mut borrowed: Vec<(u64, &mut Read<'_>)> = Vec::new();
        for (len, read) in &mut reads {
            borrowed.push((*len, read));
        }
        let books = Books::read(&mut borrowed)?;
        let found = books.judge()?;
        let unreceived = books.unreceived();
        // Of two that name one transfer, the one that received is the newer.
        let newest = books
            .all()
            .max_by_key(|account| (account.transfer, account.paid == 0));
        let last = newest.map_or(FIRST, |account| account.place);
        let mut bank = Self {
            disks,
            books,
            next: found.transfers + 1,
            last,
            rng,
        };
        if let Some(payer) = unreceived {
            let disk = payer.to.disk;
            bank.receive(&payer)
                .map_err(|source| BankError::Read { disk, source })?;
        }
        Ok((bank, found))
    }

    /// Moves an amount from an account of one disk to one of another; the transfer's number.
    ///
    /// # Errors
    /// What a disk says; the bank must not go on after one.
    pub fn transfer(&mut self) -> io::Result<u64> {
        let disks = self.disks.len() as u64;
        let from = self.rng.below(disks);
        let to = (from + 1 + self.rng.below(disks - 1)) % disks;
        let place = |disk, account| Place { disk, account };
        let (from, to) = (
            place(from, self.rng.below(ACCOUNTS)),
            place(to, self.rng.below(ACCOUNTS)),
        );
        let payer = *self.books.at(from).expect("an account of the bank");
        let paid = 1 + self.rng.below(MOST).min(payer.balance.saturating_sub(1));
        if payer.balance < paid {
            // Nothing is left there: somebody else's turn.
            return self.transfer();
        }
        let payer = Account {
            balance: payer.balance - paid,
            transfer: self.next,
            paid,
            to,
            ..payer
        };
        self.next += 1;
        self.write(payer)?;
        self.receive(&payer)?;
        Ok(payer.transfer)
    }

    fn receive(&mut self, payer: &Account) -> io::Result<()> {
        let known = self.books.at(payer.to).copied();
        let known = known.ok_or_else(|| io::Error::other("it was paid to no account"))?;
        self.write(Account {
            balance: known.balance + payer.paid,
            transfer: payer.transfer,
            paid: 0,
            to: payer.to,
            ..known
        })
    }

    fn write(&mut self, account: Account) -> io::Result<()> {
        let account = Account {
            before: self.last,
            ..account
        };
        let Place { disk, account: at } = account.place;
        let device = self.disks[usize::try_from(disk).expect("a disk of the bank")];
        device.write(offset(device.len(), at), &account.to_block().0)?;
        self.last = account.place;
        self.books.put(account);
        Ok(())
    }
}
