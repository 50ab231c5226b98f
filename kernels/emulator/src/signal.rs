//! The handler of SIGILL: decodes where the thread stopped, executes, moves on.

use crate::decode::{Instruction, Rows, decode};
use crate::tiles::{Fault, Tiles};
use std::cell::UnsafeCell;
use std::mem::MaybeUninit;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

thread_local! {
    /// Made at compile time and never dropped, so that a handler can use it at any moment.
    static TILES: UnsafeCell<Tiles> = const { UnsafeCell::new(Tiles::RELEASED) };
}

/// Instructions executed by all threads.
pub static EXECUTED: AtomicU64 = AtomicU64::new(0);

static INSTALLED: OnceLock<bool> = OnceLock::new();

/// Whether [`install`] was called and worked.
pub fn installed() -> bool {
    INSTALLED.get() == Some(&true)
}

/// Takes the process's SIGILL, once.
pub fn install() -> bool {
    *INSTALLED.get_or_init(|| {
        let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) = handle;
        // SAFETY: an action of zeroes is a valid one; the handler has the type that SA_SIGINFO asks for
        unsafe {
            let mut action: libc::sigaction = MaybeUninit::zeroed().assume_init();
            action.sa_sigaction = handler as libc::sighandler_t;
            action.sa_flags = libc::SA_SIGINFO;
            libc::sigaction(libc::SIGILL, &action, std::ptr::null_mut()) == 0
        }
    })
}

/// Where the context keeps rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8 .. r15.
const PLACES: [i32; 16] = [
    libc::REG_RAX,
    libc::REG_RCX,
    libc::REG_RDX,
    libc::REG_RBX,
    libc::REG_RSP,
    libc::REG_RBP,
    libc::REG_RSI,
    libc::REG_RDI,
    libc::REG_R8,
    libc::REG_R9,
    libc::REG_R10,
    libc::REG_R11,
    libc::REG_R12,
    libc::REG_R13,
    libc::REG_R14,
    libc::REG_R15,
];

/// Raised by an instruction the processor does not have. The system starts it with the default floating-point
/// control and gives the thread its registers back afterwards.
extern "C" fn handle(_: libc::c_int, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: with SA_SIGINFO the third argument is the interrupted thread's context, ours to change
    let registers = unsafe { &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
    let values = PLACES.map(|p| registers[p as usize] as u64);
    let rip = registers[libc::REG_RIP as usize] as u64;
    // SAFETY: the processor read the instruction's bytes there before it gave up
    let byte = |i: usize| unsafe { *(rip as *const u8).add(i) };
    let done = decode(byte, &values, rip).and_then(|(instruction, length)| {
        // SAFETY: the thread executes the instruction, so its memory is as valid as it would have to be on the unit
        unsafe { execute(instruction) }.ok().map(|()| length)
    });
    match done {
        Some(length) => {
            registers[libc::REG_RIP as usize] += length as i64;
            EXECUTED.fetch_add(1, Ordering::Relaxed);
        }
        // SAFETY: returning to the instruction with the default action ends the process as it would without us
        None => unsafe {
            libc::signal(libc::SIGILL, libc::SIG_DFL);
        },
    }
}

/// # Safety
/// The memory that the instruction names is what it takes on the machine.
unsafe fn execute(instruction: Instruction) -> Result<(), Fault> {
    let place = |rows: Rows, i: usize| rows.at.wrapping_add(rows.stride.wrapping_mul(i as u64));
    TILES.with(|tiles| {
        // SAFETY: this thread's alone, and the handler does not interrupt itself: it has no tile instruction
        let tiles = unsafe { &mut *tiles.get() };
        match instruction {
            Instruction::Configure(at) => {
                // SAFETY: 64 bytes by the caller's promise
                tiles.configure(&unsafe { (at as *const [u8; 64]).read_unaligned() })
            }
            Instruction::Configuration(at) => {
                // SAFETY: as above
                unsafe { (at as *mut [u8; 64]).write_unaligned(tiles.configuration()) };
                Ok(())
            }
            Instruction::Release => {
                *tiles = Tiles::RELEASED;
                Ok(())
            }
            Instruction::Zero(t) => tiles.zero(t),
            Instruction::Load(t, rows) => tiles.load(t, |i, to| {
                // SAFETY: a row by the caller's promise
                unsafe {
                    std::ptr::copy_nonoverlapping(place(rows, i) as *const u8, to.as_mut_ptr(), to.len())
                }
            }),
            Instruction::Store(t, rows) => tiles.store(t, |i, from| {
                // SAFETY: as above
                unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), place(rows, i) as *mut u8, from.len()) }
            }),
            Instruction::Int8(c, a, b) => tiles.int8(c, a, b),
            Instruction::Bf16(c, a, b) => tiles.bf16(c, a, b),
        }
    })
}
