/*
 * The C interface of the HVCI engine. Rules for both sides: the documentation of `hvci_engine::capi`, and docs/embedding.md.
 * Written by cbindgen: HVCI_WRITE_HEADER=1 cargo test -p hvci-engine --features capi --test capi
 */

#ifndef HVCI_H
#define HVCI_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

// HV_STATUS (TLFS); others are a host's own

// done
#define HV_STATUS_SUCCESS 0x0
// no such hypercall
#define HV_STATUS_INVALID_HYPERCALL_CODE 0x2
// the hypercall's control word or input is not as it must be
#define HV_STATUS_INVALID_HYPERCALL_INPUT 0x3
// an address is not aligned
#define HV_STATUS_INVALID_ALIGNMENT 0x4
// a parameter has no meaning here
#define HV_STATUS_INVALID_PARAMETER 0x5
// the caller may not do this
#define HV_STATUS_ACCESS_DENIED 0x6
// the partition is not in a state to do this
#define HV_STATUS_INVALID_PARTITION_STATE 0x7
// this must not be done with these pages
#define HV_STATUS_OPERATION_DENIED 0x8
// a bound on memory is reached
#define HV_STATUS_INSUFFICIENT_MEMORY 0xb
// no such partition
#define HV_STATUS_INVALID_PARTITION_ID 0xd
// no such virtual processor
#define HV_STATUS_INVALID_VP_INDEX 0xe
// there is no such thing
#define HV_STATUS_NOT_FOUND 0x10
// the virtual processor is not in a state to do this
#define HV_STATUS_INVALID_VP_STATE 0x15
// another operation holds these pages
#define HV_STATUS_OBJECT_IN_USE 0x19
// the host cannot do this
#define HV_STATUS_FEATURE_UNAVAILABLE 0x1e
// a register cannot have this value, or these flags do not go together
#define HV_STATUS_INVALID_REGISTER_VALUE 0x50
// the virtual trust level is not in a state to do this
#define HV_STATUS_INVALID_VTL_STATE 0x51
// the virtual trust level is enabled already
#define HV_STATUS_VTL_ALREADY_ENABLED 0x86


// Edition of this header: a higher one has more functions, or more fields at the ends of tables. See hvci_version.
#define HVCI_VERSION 3

// The version of every table whose name ends in V1.
#define HVCI_V1 1

// Version of the form of events. Fields are added to them, never changed.
#define HVCI_EVENT_SCHEMA 1

// Bytes of the argument block of a VTL call.
#define HVCI_VTL_CALL_SIZE 104

// Most guest pages that one frame may back.
#define HVCI_MAX_ALIASES 65536

// Where a processor could be named: none did it.
#define HVCI_NO_VP 4294967295

// Of hvci_secure_call: it is not known which page the instruction is in, or it is in two.
#define HVCI_NO_CODE 18446744073709551615ull

// Bytes of HvciVaultV1.seed.
#define HVCI_VAULT_SEED_SIZE 32

// Bytes of a vault's key, as a keeper seals it.
#define HVCI_VAULT_KEY_SIZE 32

// Most bytes that a keeper keeps, of the vault or of a sealed key.
#define HVCI_MAX_KEPT 16777216

// HV_MAP_GPA_FLAGS: loads.
#define HV_MAP_GPA_READABLE 1

// Stores.
#define HV_MAP_GPA_WRITABLE 2

// Fetches in kernel mode; without mode-based execution control, fetches in both.
#define HV_MAP_GPA_KERNEL_EXECUTABLE 4

// Fetches in user mode.
#define HV_MAP_GPA_USER_EXECUTABLE 8

// Supervisor shadow-stack accesses.
#define HV_MAP_GPA_SUPERVISOR_SHADOW_STACK 16

// A kind of access: a load.
#define HVCI_ACCESS_READ 0

// A store.
#define HVCI_ACCESS_WRITE 1

// An instruction fetch at CPL 0 to 2.
#define HVCI_ACCESS_KERNEL_EXECUTE 2

// An instruction fetch at CPL 3.
#define HVCI_ACCESS_USER_EXECUTE 3

// After an intercept: run the instruction again; a write to a register may happen.
#define HVCI_ACTION_RESUME 0

// Go on behind the instruction.
#define HVCI_ACTION_SKIP 1

// Resume; an exception has been injected.
#define HVCI_ACTION_INJECTED_FAULT 2

// Stop the machine: it cannot go on.
#define HVCI_ACTION_TERMINATE 3

// Of HvciMemoryInterceptV1.flags: `gva` is known.
#define HVCI_INTERCEPT_GVA 1

// It was the walk of the guest's page tables, not the access itself.
#define HVCI_INTERCEPT_PAGE_WALK 2

// Of HvciConfigV1.capabilities: execution in kernel and in user mode are told apart.
#define HVCI_CAPABILITY_MBEC 1

// HV_MAP_GPA_SUPERVISOR_SHADOW_STACK is known.
#define HVCI_CAPABILITY_SHADOW_STACK 2

// `protect` binds devices and the VMM's own accesses too. An engine cannot be made without.
#define HVCI_CAPABILITY_DEVICE_VIEW 4

// `aliases` tells every guest page of a frame. An engine cannot be made without.
#define HVCI_CAPABILITY_ALIASES 8

// Of HvciConfigV1.trust: the anchors that ship with the engine, each for what it is known for.
#define HVCI_TRUST_BUILTIN 1

// Of HvciKey.purposes: Windows kernel drivers.
#define HVCI_PURPOSE_KERNEL 1

// Linux modules.
#define HVCI_PURPOSE_MODULE 8

// Timestamps.
#define HVCI_PURPOSE_TIMESTAMP 32

// What hvci_vault_open has found: nothing was kept, and the vault is a new one.
#define HVCI_VAULT_NEW 1

// What was kept, and it is there again.
#define HVCI_VAULT_KEPT 2

// What was kept, and its key is gone for good: the vault is a new one.
#define HVCI_VAULT_LOST 3

// An engine: one guest, its frames and its modules.
typedef struct HvciEngine HvciEngine;

// Gets a guest page of a frame; `each_ctx` is what came with it. Anything but HV_STATUS_SUCCESS: there were too many, stop.
typedef uint16_t (*HvciEachGpn)(void *each_ctx, uint64_t gpn);

// Successive guest pages.
typedef struct HvciGpnRange {
  // Number of the first page: its address / 4096.
  uint64_t start;
  // How many.
  uint64_t pages;
} HvciGpnRange;

// The guest's memory, as the VMM has it. Functions answer an HV_STATUS, HV_STATUS_SUCCESS if they have done what they were asked. All
// must be there up to `write`; what comes behind may be null.
typedef struct HvciHostV1 {
  // HVCI_V1.
  uint32_t version;
  // Bytes of this table, sizeof(HvciHostV1).
  uint32_t size;
  // Handed to every function.
  void *ctx;
  // The frame that backs a guest page. Any other status: it is no RAM.
  uint16_t (*frame)(void *ctx, uint64_t gpn, uint64_t *frame);
  // Calls `each` with `each_ctx` for every guest page that the frame backs. A failure, or more than HVCI_MAX_ALIASES, ends the engine.
  uint16_t (*aliases)(void *ctx, uint64_t frame, HvciEachGpn each, void *each_ctx);
  // Sets what a level, and for VTL 0 its devices, may do with the pages: HV_MAP_GPA_*. When it returns, new translations obey. If it
  // fails, it says how many of the ranges it has `done`, from the first.
  uint16_t (*protect)(void *ctx,
                      uint8_t vtl,
                      const struct HvciGpnRange *ranges,
                      size_t count,
                      uint32_t flags,
                      size_t *done);
  // Returns when nothing uses an older permission of the pages: TLBs are flushed, emulated instructions done, memory of devices given
  // back. HV_STATUS_OBJECT_IN_USE if that takes too long.
  uint16_t (*quiesce)(void *ctx, uint8_t vtl, const struct HvciGpnRange *ranges, size_t count);
  // Reads guest memory, whatever its protection. HV_STATUS_INVALID_PARAMETER where there is no RAM.
  uint16_t (*read)(void *ctx, uint64_t gpa, uint8_t *bytes, size_t len);
  // Writes guest memory, whatever its protection: all of it or nothing.
  uint16_t (*write)(void *ctx, uint64_t gpa, const uint8_t *bytes, size_t len);
  // Nanoseconds of a clock that never goes back, for events. Null: they have no time.
  uint64_t (*now)(void *ctx);
  // Where the guest's kernel has a symbol that a module imports. `library` is empty for a Linux module. `name` is null if it is by
  // `ordinal`. Any other status, or null here: nobody exports it.
  uint16_t (*resolve)(void *ctx,
                      const uint8_t *library,
                      size_t library_len,
                      const uint8_t *name,
                      size_t name_len,
                      uint16_t ordinal,
                      uint64_t *address);
} HvciHostV1;

// A certificate whose key is trusted.
typedef struct HvciKey {
  // DER.
  const uint8_t *der;
  // Bytes of it.
  size_t len;
  // HVCI_PURPOSE_*, one or several.
  uint32_t purposes;
  // 0.
  uint32_t reserved;
} HvciKey;

// A catalog: what its signer lists is signed, though it carries no signature itself.
typedef struct HvciCatalog {
  // DER.
  const uint8_t *der;
  // Bytes of it.
  size_t len;
} HvciCatalog;

// What an engine is made for.
typedef struct HvciConfigV1 {
  // HVCI_V1.
  uint32_t version;
  // Bytes of this table.
  uint32_t size;
  // What the host can do: HVCI_CAPABILITY_*. The engine refuses what it cannot.
  uint32_t capabilities;
  // HVCI_TRUST_BUILTIN or 0.
  uint32_t trust;
  // The guest's RAM.
  const struct HvciGpnRange *ram;
  // How many ranges.
  size_t ram_count;
  // The first frame that backs it.
  uint64_t first_frame;
  // How many, from the first to the last. Each takes eight bytes of memory.
  uint64_t frame_count;
  // Virtual processors.
  uint32_t vps;
  // Events that wait to be taken, at most.
  uint32_t event_capacity;
  // Certificates that are trusted too.
  const struct HvciKey *keys;
  // How many.
  size_t key_count;
  // Catalogs that may speak for a driver. One whose signer is not trusted for it speaks for none.
  const struct HvciCatalog *catalogs;
  // How many.
  size_t catalog_count;
} HvciConfigV1;

// A virtual processor that has exited to the VMM. Everything must be there.
typedef struct HvciVpV1 {
  // HVCI_V1.
  uint32_t version;
  // Bytes of this table.
  uint32_t size;
  // Handed to every function.
  void *ctx;
  // HV_VP_INDEX.
  uint32_t index;
  // 0.
  uint32_t reserved;
  // The value of an HV_REGISTER_NAME, in two halves. HV_STATUS_INVALID_PARAMETER for a name that is not known.
  uint16_t (*get_register)(void *ctx, uint32_t name, uint64_t *low, uint64_t *high);
  // Sets a register.
  uint16_t (*set_register)(void *ctx, uint32_t name, uint64_t low, uint64_t high);
  // Has an exception delivered before the next instruction.
  void (*inject)(void *ctx, uint8_t vector, bool has_error_code, uint32_t error_code);
} HvciVpV1;

// An access that the second-level table refused.
typedef struct HvciMemoryInterceptV1 {
  // HVCI_V1.
  uint32_t version;
  // Bytes of this table.
  uint32_t size;
  // Where.
  uint64_t gpa;
  // The virtual address that led there, with HVCI_INTERCEPT_GVA.
  uint64_t gva;
  // Address of the instruction.
  uint64_t rip;
  // HVCI_ACCESS_*.
  uint32_t access;
  // HVCI_INTERCEPT_*.
  uint32_t flags;
  // Privilege level, 0 to 3.
  uint32_t cpl;
  // 0.
  uint32_t reserved;
} HvciMemoryInterceptV1;

// Where a section of a Linux module is.
typedef struct HvciSection {
  // Its number in the section header table.
  uint64_t number;
  // Address of its first byte; of per-CPU variables, their offset in the area of a processor.
  uint64_t address;
} HvciSection;

// Successive pages of a module.
typedef struct HvciArea {
  // Address of the first page.
  uint64_t address;
  // Guest page numbers, in order of address. As of a module at one base.
  const uint64_t *pages;
  // How many.
  size_t page_count;
} HvciArea;

// A module to load: a driver at `base`; a Linux module from `base` up, one kind of memory behind the other, or, with `sections`, each of its
// sections where that says.
typedef struct HvciLoadV1 {
  // HVCI_V1.
  uint32_t version;
  // Bytes of this table.
  uint32_t size;
  // What the guest calls it: UTF-8, ended by a zero.
  const char *name;
  // The signed file, where no guest writes.
  const uint8_t *file;
  // Bytes of it.
  size_t file_len;
  // Address of the module's first page; 0 with `sections`.
  uint64_t base;
  // Guest page numbers of its pages, in order of address; null with `sections`. UINT64_MAX for a page of code that is to come when it
  // is first executed (hvci_on_memory).
  const uint64_t *pages;
  // How many; 0 with `sections`.
  size_t page_count;
  // Seconds since 1970.
  int64_t time;
  // The processor that asks, or HVCI_NO_VP.
  uint32_t vp;
  // 0.
  uint32_t reserved;
  // Each section that takes memory, once and in any order. Null: the module is at `base`.
  const struct HvciSection *sections;
  // How many.
  size_t section_count;
  // The memory that the sections are in, in any order; null without them.
  const struct HvciArea *areas;
  // How many.
  size_t area_count;
} HvciLoadV1;

// Gets bytes, piece by piece: of hvci_save, or one event of hvci_take_events. A keeper gets one of the engine's, never null, for the call.
typedef void (*HvciSink)(void *ctx, const uint8_t *bytes, size_t len);

// Keeps a vault while its machine is off: the machine's TPM with a file, or the host. All functions must be there. Each answers
// HV_STATUS_SUCCESS if it has done what it was asked; HV_STATUS_ACCESS_DENIED if the machine is not in a state in which the key may be had, but
// may be later; HV_STATUS_NOT_FOUND if the key is gone for good: what was sealed under it is given up then; any other status if it failed. They
// are called one at a time, by any thread.
typedef struct HvciKeeperV1 {
  // HVCI_V1.
  uint32_t version;
  // Bytes of this table.
  uint32_t size;
  // Handed to every function.
  void *ctx;
  // Gives `sink` what `replace` was given last, in one or several pieces; nothing if it was given nothing yet.
  uint16_t (*read)(void *ctx, HvciSink sink, void *sink_ctx);
  // Keeps these bytes, HVCI_MAX_KEPT at most, instead: all of them or none, whatever happens meanwhile, and lasting when it returns.
  uint16_t (*replace)(void *ctx, const uint8_t *bytes, size_t len);
  // How far the machine has come: a number that never goes back, whoever puts an older disk under it.
  uint16_t (*counter)(void *ctx, uint64_t *value);
  // Moves it up to `value`.
  uint16_t (*advance)(void *ctx, uint64_t value);
  // Seals the HVCI_VAULT_KEY_SIZE bytes of `key`, so that nothing but `unseal` gets them back, and gives `sink` what came of it. No copy of
  // the key stays.
  uint16_t (*seal)(void *ctx, const uint8_t *key, HvciSink sink, void *sink_ctx);
  // Writes the HVCI_VAULT_KEY_SIZE bytes of a sealed key to `key`: once in a boot.
  uint16_t (*unseal)(void *ctx, const uint8_t *sealed, size_t len, uint8_t *key);
} HvciKeeperV1;

// What a vault is made for.
typedef struct HvciVaultV1 {
  // HVCI_V1.
  uint32_t version;
  // Bytes of this table.
  uint32_t size;
  // Guest page numbers of its pages, each once: RAM that the guest was told not to use. 32 credentials fit into each.
  const uint64_t *pages;
  // How many; one at least.
  size_t page_count;
  // The machine's, for all its life.
  uint8_t vm_id[16];
  // A new one at each boot, and when the machine's memory is restored.
  uint8_t boot_id[16];
  // HVCI_VAULT_SEED_SIZE random bytes that were used for nothing else. The caller wipes them afterwards.
  const uint8_t *seed;
  // What is allowed of every credential: JSON of an `hvci_engine::vault::UsePolicy`.
  const uint8_t *policy;
  // Bytes of it; 0 for the default.
  size_t policy_len;
  // Null: nothing outlives the boot. The table is copied; what it names lives as long as the engine.
  const struct HvciKeeperV1 *keeper;
} HvciVaultV1;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// The edition of the library: HVCI_VERSION of the header that it was built with.
uint32_t hvci_version(void);

// Makes an engine: every page of the guest's RAM becomes data, so what firmware left executable is executable no more. `host` and `config`
// are copied, and what `config` points at may go afterwards. `*engine` is null on failure.
//
// HV_STATUS_INVALID_PARAMETER: null, a version or size that is not known, a function that is missing, a certificate or a catalog that is
// none, RAM that none of the frames backs. HV_STATUS_FEATURE_UNAVAILABLE: a host that cannot bind devices or tell aliases. The host's own.
uint16_t hvci_create(const struct HvciHostV1 *host,
                     const struct HvciConfigV1 *config,
                     struct HvciEngine **engine);

// Ends an engine; null is nothing to end. Nobody may be within another function of it. The guest's permissions stay as they are. What is in a
// vault is gone unless it was kept (hvci_vault_commit), and its pages are wiped, but not those of an engine that a panic ended.
void hvci_destroy(struct HvciEngine *engine);

// Answers a hypercall of level `vtl`: `control` is the TLFS's control word, `input` what is at the input GPA or in registers, `output`
// what goes to the output GPA: zeros where nothing is answered. `*reps`, if it is not null, is how many elements of a rep call are done.
uint16_t hvci_hypercall(const struct HvciEngine *engine,
                        const struct HvciVpV1 *vp,
                        uint8_t vtl,
                        uint64_t control,
                        const uint8_t *input,
                        size_t input_len,
                        uint8_t *output,
                        size_t output_len,
                        uint16_t *reps);

// Answers an access of VTL 0 that the second-level table refused. `*action` is one of HVCI_ACTION_*, always. Execution of a page of code that
// was not in memory has it verified: functions of the host's are called for that.
uint16_t hvci_on_memory(const struct HvciEngine *engine,
                        const struct HvciVpV1 *vp,
                        const struct HvciMemoryInterceptV1 *intercept,
                        uint32_t *action);

// Answers a write to a register that is intercepted, before it is done. `*action` is one of HVCI_ACTION_*, always.
uint16_t hvci_on_register_write(const struct HvciEngine *engine,
                                const struct HvciVpV1 *vp,
                                uint32_t name,
                                uint64_t old_value,
                                uint64_t new_value,
                                uint32_t *action);

// Whether level `vtl`, its devices or the VMM on its behalf may access `len` bytes from `gpa`, all of them. HV_STATUS_ACCESS_DENIED if
// not; HV_STATUS_INVALID_PARAMETER where there is no RAM. To be asked for every access that no processor does.
uint16_t hvci_check(const struct HvciEngine *engine,
                    uint8_t vtl,
                    uint64_t gpa,
                    uint64_t len,
                    uint32_t access);

// Loads a module: verifies the file under `hvci` if it is a Windows driver and `linux-module` if it is a Linux module, locks the pages,
// compares every byte and makes code executable; or leaves everything as it was. `*module` is its number then, else 0. `reason`, of
// `reason_size` bytes, gets why it was refused, cut short if it must be and ended by a zero; it may be null.
uint16_t hvci_load(const struct HvciEngine *engine,
                   const struct HvciLoadV1 *load,
                   uint32_t *module,
                   char *reason,
                   size_t reason_size);

// Unloads a module: it executes no more, then what stood in its pages is gone, then they are the guest's again. HV_STATUS_NOT_FOUND: none;
// HV_STATUS_OBJECT_IN_USE: another imports from it, or something is being done with it.
uint16_t hvci_unload(const struct HvciEngine *engine,
                     uint32_t module);

// Refuses from now on what `list` says, in spite of a good signature, and nothing else; what is loaded stays. `list` is `len` bytes of JSON:
//
// ```json
// { "version": 3,
//   "authentihashes": { "sha256:9f86...": "why" },
//   "certificates": [ { "tbs": "sha256:2cf2...", "since": "2023-05-01", "reason": "the key was stolen" } ] }
// ```
//
// `tbs` is the digest of a TBSCertificate; `since` may be left out, and so may either list. HV_STATUS_INVALID_PARAMETER: it is no such list.
// HV_STATUS_OPERATION_DENIED: its version is lower than that of the list there is. Lists are not part of a saved state.
uint16_t hvci_replace_blocked(const struct HvciEngine *engine,
                              const uint8_t *list,
                              size_t len);

// Answers a VTL call of processor `vp`: `block` is a copy of the guest's HVCI_VTL_CALL_SIZE bytes, `time` are seconds since 1970,
// `*answer`, if it is not null, is what the function answers. A VMM asks itself in the same way for what has no function here (the end of
// a module's initialisation, patches, regions). The vault's functions are not there: hvci_secure_call.
uint16_t hvci_vtl_call(const struct HvciEngine *engine,
                       const uint8_t *block,
                       uint32_t vp,
                       int64_t time,
                       uint64_t *answer);

// Ends the boot: levels, configuration, pinned registers and keys can be changed no more. There is no way back.
uint16_t hvci_end_of_boot(const struct HvciEngine *engine);

// Takes the events out, oldest first: `sink` gets each as a line of JSON, ended by a newline (schema HVCI_EVENT_SCHEMA). `*lost`, if it is
// not null, is how many were dropped since the engine was made because nobody took them in time.
uint16_t hvci_take_events(const struct HvciEngine *engine,
                          HvciSink sink,
                          void *sink_ctx,
                          uint64_t *lost);

// The protection state and the table of modules, for a snapshot or a migration: `sink` gets them in several pieces. No other call may be
// under way. HV_STATUS_OBJECT_IN_USE while a module is being loaded or changed; `sink` gets nothing then.
uint16_t hvci_save(const struct HvciEngine *engine,
                   HvciSink sink,
                   void *sink_ctx);

// Takes over a saved state. HV_STATUS_INVALID_PARAMETER for what is none of a known version, HV_STATUS_OPERATION_DENIED for one that is
// older than what this machine has reached: nothing is changed then. A status of the host's own comes when it is taken over already, and
// leaves permissions narrower than it allows. If only the table of modules is refused, the protection state is taken over and the table is
// what it was: destroy the engine then. HV_STATUS_INVALID_PARTITION_STATE if there is a vault, whose pages the state could give away: it is
// opened behind this.
uint16_t hvci_restore(const struct HvciEngine *engine,
                      const uint8_t *state,
                      size_t len);

// Opens the engine's vault, before the guest runs and behind hvci_restore: its pages become VTL 1's, which neither the guest nor a device
// reads, and are wiped. `vault` and the keeper's table are copied. `*opened`, if it is not null, is HVCI_VAULT_*, or 0 on failure. Pages that
// were taken by then stay VTL 1's, without secrets, and may be named again.
//
// HV_STATUS_INVALID_PARTITION_STATE: there is a vault. HV_STATUS_ACCESS_DENIED: what was kept is another machine's, older than what was last
// kept, or changed. HV_STATUS_OPERATION_DENIED: the keeper failed, or does not release the key. HV_STATUS_INVALID_PARAMETER: null, a version
// or size that is not known, a function that is missing, pages that are no RAM or fewer than what was kept takes, a policy that is none.
// HV_STATUS_INSUFFICIENT_MEMORY: no pages. Others for pages that something else has. The host's own.
uint16_t hvci_vault_open(const struct HvciEngine *engine,
                         const struct HvciVaultV1 *vault,
                         uint32_t *opened);

// As hvci_vtl_call, and answers the vault's functions too. `code_gpa` is the guest-physical address of the instruction that made the call, as
// the VMM itself found it at the exit by the guest's page tables; HVCI_NO_CODE if the instruction lies over the end of a page, or was not
// found. The module whose verified code is there is who asks: HV_STATUS_ACCESS_DENIED if it is none, or none that may.
// HV_STATUS_INSUFFICIENT_MEMORY: the answer has no room, and `*answer` is how many bytes it takes, or the vault is full, and it is 0.
uint16_t hvci_secure_call(const struct HvciEngine *engine,
                          const uint8_t *block,
                          uint32_t vp,
                          uint64_t code_gpa,
                          int64_t time,
                          uint64_t *answer);

// Has the keeper keep what it does not keep yet; without a keeper nothing is done. HV_STATUS_INVALID_PARTITION_STATE: there is no vault.
// HV_STATUS_OPERATION_DENIED: the keeper failed; what was kept before, or all of what is there now, is kept then.
uint16_t hvci_vault_commit(const struct HvciEngine *engine);

// Has the keeper keep everything under a new key. As hvci_vault_commit.
uint16_t hvci_vault_rotate(const struct HvciEngine *engine);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* HVCI_H */
