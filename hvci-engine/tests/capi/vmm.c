/*
 * A small VMM in C: sixteen pages of RAM, two pages that alias others, one signed module, a driver that a catalog lists, and a vault. Every
 * step is checked; the first that is not as it must be ends the program with 1.
 *
 * vmm MODULE CERTIFICATE TIME DRIVER CATALOG CERTIFICATE LIST; the list is of version 2 and refuses the driver
 */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "hvci.h"

#define PAGE 4096u
#define FRAMES 16u
/* pages 16 and 17 are backed by the frames of pages 4 and 5 */
#define PAGES 18u
#define ALIAS_OF_TEXT 16u

#define BASE 0xffffffffc0400000ull
#define PRINTK 0xffffffff81123450ull
#define CR4 0x00040003u

/* of the host's own: the engine passes on what it does not know */
#define STATUS_OF_THE_HOST 0x7abcu

static int checks;

#define MUST(condition)                                                                 \
    do {                                                                                \
        checks++;                                                                       \
        if (!(condition)) {                                                             \
            printf("line %d: %s\n", __LINE__, #condition);                              \
            exit(1);                                                                    \
        }                                                                               \
    } while (0)

#define IS(status, expected)                                                            \
    do {                                                                                \
        unsigned got = (status);                                                        \
        checks++;                                                                       \
        if (got != (expected)) {                                                        \
            printf("line %d: %s is %#x, not %#x\n", __LINE__, #status, got, (unsigned)(expected)); \
            exit(1);                                                                    \
        }                                                                               \
    } while (0)

/* ---- the machine ---- */

struct machine {
    uint8_t ram[FRAMES * PAGE];
    /* of each level and page: what a second-level table would say */
    uint32_t allowed[2][PAGES];
    unsigned quiesced;
    uint64_t clock;
    /* what the next calls of protect answer */
    uint16_t failing;
};

static uint64_t frame_of(uint64_t gpn)
{
    return gpn < FRAMES ? gpn : gpn - FRAMES + 4;
}

static uint16_t frame(void *ctx, uint64_t gpn, uint64_t *out)
{
    (void)ctx;
    if (gpn >= PAGES)
        return HV_STATUS_INVALID_PARAMETER;
    *out = frame_of(gpn);
    return HV_STATUS_SUCCESS;
}

static uint16_t aliases(void *ctx, uint64_t wanted, HvciEachGpn each, void *each_ctx)
{
    (void)ctx;
    for (uint64_t gpn = 0; gpn < PAGES; gpn++) {
        if (frame_of(gpn) == wanted) {
            uint16_t status = each(each_ctx, gpn);
            if (status != HV_STATUS_SUCCESS)
                return status;
        }
    }
    return HV_STATUS_SUCCESS;
}

static uint16_t protect(void *ctx, uint8_t vtl, const struct HvciGpnRange *ranges, size_t count, uint32_t flags, size_t *done)
{
    struct machine *machine = ctx;
    *done = 0;
    if (machine->failing != HV_STATUS_SUCCESS)
        return machine->failing;
    for (size_t i = 0; i < count; i++) {
        for (uint64_t page = 0; page < ranges[i].pages; page++)
            machine->allowed[vtl][ranges[i].start + page] = flags;
        *done = i + 1;
    }
    return HV_STATUS_SUCCESS;
}

static uint16_t quiesce(void *ctx, uint8_t vtl, const struct HvciGpnRange *ranges, size_t count)
{
    struct machine *machine = ctx;
    (void)vtl, (void)ranges, (void)count;
    machine->quiesced++;
    return HV_STATUS_SUCCESS;
}

static uint8_t *at(struct machine *machine, uint64_t gpa, size_t len)
{
    if (gpa / PAGE >= PAGES || len > PAGE - gpa % PAGE)
        return NULL;
    return machine->ram + frame_of(gpa / PAGE) * PAGE + gpa % PAGE;
}

static uint16_t read_ram(void *ctx, uint64_t gpa, uint8_t *bytes, size_t len)
{
    const uint8_t *there = at(ctx, gpa, len);
    if (there == NULL)
        return HV_STATUS_INVALID_PARAMETER;
    memcpy(bytes, there, len);
    return HV_STATUS_SUCCESS;
}

static uint16_t write_ram(void *ctx, uint64_t gpa, const uint8_t *bytes, size_t len)
{
    uint8_t *there = at(ctx, gpa, len);
    if (there == NULL)
        return HV_STATUS_INVALID_PARAMETER;
    memcpy(there, bytes, len);
    return HV_STATUS_SUCCESS;
}

static uint64_t now(void *ctx)
{
    struct machine *machine = ctx;
    return machine->clock += 10;
}

static uint16_t resolve(void *ctx, const uint8_t *library, size_t library_len, const uint8_t *name, size_t name_len, uint16_t ordinal,
                        uint64_t *address)
{
    (void)ctx, (void)library, (void)ordinal;
    if (library_len != 0 || name_len != 7 || memcmp(name, "_printk", 7) != 0)
        return HV_STATUS_NOT_FOUND;
    *address = PRINTK;
    return HV_STATUS_SUCCESS;
}

/* ---- the processor ---- */

struct processor {
    unsigned injected;
    uint8_t vector;
    bool has_error_code;
    uint32_t error_code;
    /* of one register that is 128 bits wide */
    uint64_t low, high;
};

static uint16_t get_register(void *ctx, uint32_t name, uint64_t *low, uint64_t *high)
{
    struct processor *processor = ctx;
    (void)name;
    *low = processor->low;
    *high = processor->high;
    return HV_STATUS_SUCCESS;
}

static uint16_t set_register(void *ctx, uint32_t name, uint64_t low, uint64_t high)
{
    struct processor *processor = ctx;
    (void)name;
    processor->low = low;
    processor->high = high;
    return HV_STATUS_SUCCESS;
}

static void inject(void *ctx, uint8_t vector, bool has_error_code, uint32_t error_code)
{
    struct processor *processor = ctx;
    processor->injected++;
    processor->vector = vector;
    processor->has_error_code = has_error_code;
    processor->error_code = error_code;
}

/* ---- what keeps the vault: a buffer and a counter that outlive a boot ---- */

struct keeper {
    uint8_t kept[8192];
    size_t len;
    uint64_t counter;
    unsigned replaced;
    /* what unseal answers */
    uint16_t failing;
};

/* no seal at all: a real keeper has the machine's TPM seal the key to what was measured */
static void seal_or_unseal(uint8_t *to, const uint8_t *from)
{
    for (size_t i = 0; i < HVCI_VAULT_KEY_SIZE; i++)
        to[i] = from[i] ^ 0x5a;
}

static uint16_t read_kept(void *ctx, HvciSink sink, void *sink_ctx)
{
    const struct keeper *keeper = ctx;
    const size_t half = keeper->len / 2;
    if (keeper->len > 0) {
        sink(sink_ctx, keeper->kept, half);
        sink(sink_ctx, keeper->kept + half, keeper->len - half);
    }
    return HV_STATUS_SUCCESS;
}

static uint16_t replace_kept(void *ctx, const uint8_t *bytes, size_t len)
{
    struct keeper *keeper = ctx;
    if (len > sizeof keeper->kept)
        return HV_STATUS_INSUFFICIENT_MEMORY;
    memcpy(keeper->kept, bytes, len);
    keeper->len = len;
    keeper->replaced++;
    return HV_STATUS_SUCCESS;
}

static uint16_t counter(void *ctx, uint64_t *value)
{
    const struct keeper *keeper = ctx;
    *value = keeper->counter;
    return HV_STATUS_SUCCESS;
}

static uint16_t advance(void *ctx, uint64_t value)
{
    struct keeper *keeper = ctx;
    if (value > keeper->counter)
        keeper->counter = value;
    return HV_STATUS_SUCCESS;
}

static uint16_t seal(void *ctx, const uint8_t *key, HvciSink sink, void *sink_ctx)
{
    uint8_t sealed[HVCI_VAULT_KEY_SIZE];
    (void)ctx;
    seal_or_unseal(sealed, key);
    sink(sink_ctx, sealed, sizeof sealed);
    return HV_STATUS_SUCCESS;
}

static uint16_t unseal(void *ctx, const uint8_t *sealed, size_t len, uint8_t *key)
{
    const struct keeper *keeper = ctx;
    if (keeper->failing != HV_STATUS_SUCCESS)
        return keeper->failing;
    if (len != HVCI_VAULT_KEY_SIZE)
        return HV_STATUS_INVALID_PARAMETER;
    seal_or_unseal(key, sealed);
    return HV_STATUS_SUCCESS;
}

/* ---- sinks ---- */

struct text {
    char bytes[1 << 16];
    size_t len;
    unsigned pieces;
};

static void append(void *ctx, const uint8_t *bytes, size_t len)
{
    struct text *text = ctx;
    MUST(text->len + len < sizeof text->bytes);
    memcpy(text->bytes + text->len, bytes, len);
    text->len += len;
    text->bytes[text->len] = 0;
    text->pieces++;
}

/* ---- what it does ---- */

static struct machine machine;
static struct processor cpu;
static struct text text;
static struct keeper keeper;

static struct HvciHostV1 host_table(void)
{
    struct HvciHostV1 host = {0};
    host.version = HVCI_V1;
    host.size = sizeof host;
    host.ctx = &machine;
    host.frame = frame;
    host.aliases = aliases;
    host.protect = protect;
    host.quiesce = quiesce;
    host.read = read_ram;
    host.write = write_ram;
    host.now = now;
    host.resolve = resolve;
    return host;
}

static struct HvciVpV1 vp_table(void)
{
    struct HvciVpV1 vp = {0};
    vp.version = HVCI_V1;
    vp.size = sizeof vp;
    vp.ctx = &cpu;
    vp.get_register = get_register;
    vp.set_register = set_register;
    vp.inject = inject;
    return vp;
}

static struct HvciKeeperV1 keeper_table(void)
{
    struct HvciKeeperV1 table = {0};
    table.version = HVCI_V1;
    table.size = sizeof table;
    table.ctx = &keeper;
    table.read = read_kept;
    table.replace = replace_kept;
    table.counter = counter;
    table.advance = advance;
    table.seal = seal;
    table.unseal = unseal;
    return table;
}

static uint8_t *read_file(const char *path, size_t *len)
{
    static uint8_t buffers[6][1 << 16];
    static unsigned next;
    MUST(next < 6);
    uint8_t *bytes = buffers[next++];
    FILE *file = fopen(path, "rb");
    MUST(file != NULL);
    *len = fread(bytes, 1, 1 << 16, file);
    fclose(file);
    return bytes;
}

/* what a guest's loader writes before it asks: text, constants, data, initialisation, a page each */
static void lay_out(uint64_t first)
{
    static const uint8_t answer[] = {0xb8, 42, 0, 0, 0, 0xc3};
    static const uint8_t init[] = {0x31, 0xc0, 0xc3};
    const uint64_t printk = PRINTK, seven = 7;
    memset(machine.ram + first * PAGE, 0, 4 * PAGE);
    memcpy(machine.ram + first * PAGE, answer, sizeof answer);
    memcpy(machine.ram + (first + 1) * PAGE, &printk, sizeof printk);
    memcpy(machine.ram + (first + 2) * PAGE, &seven, sizeof seven);
    memcpy(machine.ram + (first + 3) * PAGE, init, sizeof init);
}

static uint64_t number(const uint8_t *bytes, unsigned len)
{
    uint64_t value = 0;
    while (len-- > 0)
        value = value << 8 | bytes[len];
    return value;
}

/* headers, .text, .rdata, .data, .reloc */
#define DRIVER_PAGES 5u

/* what a guest's loader makes of a driver without imports */
static void lay_out_driver(uint64_t first, const uint8_t *file)
{
    uint8_t *image = machine.ram + first * PAGE;
    const uint8_t *nt = file + number(file + 0x3c, 4), *optional = nt + 24;
    const uint8_t *section = optional + number(nt + 20, 2);
    memset(image, 0, DRIVER_PAGES * PAGE);
    memcpy(image, file, number(optional + 60, 4));
    for (uint64_t count = number(nt + 6, 2); count > 0; count--, section += 40)
        memcpy(image + number(section + 12, 4), file + number(section + 20, 4), number(section + 16, 4));
    const uint64_t moved = BASE - number(optional + 24, 8);
    const uint8_t *block = image + number(optional + 112 + 5 * 8, 4), *end = block + number(block + 4, 4);
    for (const uint8_t *entry = block + 8; entry < end; entry += 2) {
        if (number(entry, 2) >> 12 == 10) {
            uint8_t *word = image + number(block, 4) + (number(entry, 2) & 0xfff);
            const uint64_t value = number(word, 8) + moved;
            memcpy(word, &value, sizeof value);
        }
    }
}

static bool is_zero(uint64_t page)
{
    for (size_t i = 0; i < PAGE; i++)
        if (machine.ram[page * PAGE + i] != 0)
            return false;
    return true;
}

static void tables_are_checked(const struct HvciConfigV1 *config)
{
    struct HvciEngine *engine = NULL;
    struct HvciHostV1 host = host_table();

    host.version = 2;
    engine = (struct HvciEngine *)&host;
    IS(hvci_create(&host, config, &engine), HV_STATUS_INVALID_PARAMETER);
    MUST(engine == NULL);
    host = host_table();
    host.size = offsetof(struct HvciHostV1, write);
    IS(hvci_create(&host, config, &engine), HV_STATUS_INVALID_PARAMETER);
    host = host_table();
    host.quiesce = NULL;
    IS(hvci_create(&host, config, &engine), HV_STATUS_INVALID_PARAMETER);
    host = host_table();
    IS(hvci_create(NULL, config, &engine), HV_STATUS_INVALID_PARAMETER);
    IS(hvci_create(&host, NULL, &engine), HV_STATUS_INVALID_PARAMETER);
    IS(hvci_create(&host, config, NULL), HV_STATUS_INVALID_PARAMETER);

    struct HvciConfigV1 other = *config;
    other.capabilities = HVCI_CAPABILITY_ALIASES;
    IS(hvci_create(&host, &other, &engine), HV_STATUS_FEATURE_UNAVAILABLE);
    other = *config;
    other.capabilities |= 0x100;
    IS(hvci_create(&host, &other, &engine), HV_STATUS_INVALID_PARAMETER);
    other = *config;
    other.keys = NULL;
    IS(hvci_create(&host, &other, &engine), HV_STATUS_INVALID_PARAMETER);

    /* a status that nobody knows comes back as it is */
    machine.failing = STATUS_OF_THE_HOST;
    IS(hvci_create(&host, config, &engine), STATUS_OF_THE_HOST);
    machine.failing = HV_STATUS_SUCCESS;

    /* a table of a later edition: what is behind the fields known here is not looked at */
    struct {
        struct HvciHostV1 known;
        uint64_t later[4];
    } longer = {host_table(), {1, 2, 3, 4}};
    longer.known.size = sizeof longer;
    IS(hvci_create(&longer.known, config, &engine), HV_STATUS_SUCCESS);
    hvci_destroy(engine);
    /* and one that ends where the first edition did, in memory that ends there too */
    struct HvciHostV1 *first = malloc(64);
    MUST(first != NULL);
    host.size = 64;
    memcpy(first, &host, 64);
    IS(hvci_create(first, config, &engine), HV_STATUS_SUCCESS);
    free(first);
    hvci_destroy(engine);
    hvci_destroy(NULL);
}

static void null_is_refused(const struct HvciEngine *engine, const struct HvciVpV1 *vp)
{
    struct HvciMemoryInterceptV1 intercept = {0};
    uint8_t block[HVCI_VTL_CALL_SIZE] = {0};
    uint32_t action = HVCI_ACTION_RESUME;

    IS(hvci_check(NULL, 0, 0, 1, HVCI_ACCESS_READ), HV_STATUS_INVALID_PARAMETER);
    IS(hvci_hypercall(engine, NULL, 0, 0, NULL, 0, NULL, 0, NULL), HV_STATUS_INVALID_PARAMETER);
    IS(hvci_hypercall(engine, vp, 0, 0, NULL, 8, NULL, 0, NULL), HV_STATUS_INVALID_PARAMETER);
    IS(hvci_on_memory(engine, vp, NULL, &action), HV_STATUS_INVALID_PARAMETER);
    IS(action, HVCI_ACTION_TERMINATE);
    IS(hvci_on_memory(engine, vp, &intercept, &action), HV_STATUS_INVALID_PARAMETER);
    IS(hvci_on_memory(engine, vp, &intercept, NULL), HV_STATUS_INVALID_PARAMETER);
    IS(hvci_on_register_write(NULL, vp, CR4, 0, 0, &action), HV_STATUS_INVALID_PARAMETER);
    IS(hvci_load(engine, NULL, NULL, NULL, 0), HV_STATUS_INVALID_PARAMETER);
    IS(hvci_unload(NULL, 1), HV_STATUS_INVALID_PARAMETER);
    IS(hvci_replace_blocked(NULL, NULL, 0), HV_STATUS_INVALID_PARAMETER);
    IS(hvci_replace_blocked(engine, NULL, 0), HV_STATUS_INVALID_PARAMETER);
    IS(hvci_replace_blocked(engine, NULL, 2), HV_STATUS_INVALID_PARAMETER);
    IS(hvci_vtl_call(engine, NULL, 0, 0, NULL), HV_STATUS_INVALID_PARAMETER);
    IS(hvci_secure_call(engine, NULL, 0, HVCI_NO_CODE, 0, NULL), HV_STATUS_INVALID_PARAMETER);
    IS(hvci_secure_call(NULL, block, 0, HVCI_NO_CODE, 0, NULL), HV_STATUS_INVALID_PARAMETER);
    IS(hvci_vault_open(NULL, NULL, NULL), HV_STATUS_INVALID_PARAMETER);
    IS(hvci_vault_open(engine, NULL, NULL), HV_STATUS_INVALID_PARAMETER);
    IS(hvci_vault_commit(NULL), HV_STATUS_INVALID_PARAMETER);
    IS(hvci_vault_commit(engine), HV_STATUS_INVALID_PARTITION_STATE);
    IS(hvci_vault_rotate(engine), HV_STATUS_INVALID_PARTITION_STATE);
    IS(hvci_vtl_call(engine, block, 0, 0, NULL), HV_STATUS_FEATURE_UNAVAILABLE);
    IS(hvci_end_of_boot(NULL), HV_STATUS_INVALID_PARAMETER);
    IS(hvci_take_events(engine, NULL, NULL, NULL), HV_STATUS_INVALID_PARAMETER);
    IS(hvci_save(engine, NULL, NULL), HV_STATUS_INVALID_PARAMETER);
    IS(hvci_restore(engine, NULL, 8), HV_STATUS_INVALID_PARAMETER);
    IS(hvci_restore(engine, NULL, 0), HV_STATUS_INVALID_PARAMETER);
    /* and values that mean nothing */
    IS(hvci_check(engine, 2, 0, 1, HVCI_ACCESS_READ), HV_STATUS_INVALID_PARAMETER);
    IS(hvci_check(engine, 0, 0, 1, 4), HV_STATUS_INVALID_PARAMETER);
    IS(hvci_check(engine, 0, UINT64_MAX, 2, HVCI_ACCESS_READ), HV_STATUS_INVALID_PARAMETER);
    IS(hvci_hypercall(engine, vp, 0, 0xffff, NULL, 0, NULL, 0, NULL), HV_STATUS_INVALID_HYPERCALL_CODE);
}

/* each section of the module in a place of its own */
static void sections_are_where_they_are_said_to_be(const struct HvciConfigV1 *config, struct HvciLoadV1 load)
{
    const struct HvciHostV1 host = host_table();
    /* as readelf -S numbers them: .text, .rodata, .data, .init.text; the rest takes no memory */
    struct HvciSection sections[] = {{5, BASE + PAGE}, {1, BASE}, {7, BASE + 0x200000}, {2, BASE + 0x100000}};
    const uint64_t front[] = {4, 5}, data[] = {12}, init[] = {9};
    struct HvciArea areas[] = {{BASE + 0x200000, init, 1}, {BASE, front, 2}, {BASE + 0x100000, data, 1}};
    struct HvciEngine *engine = NULL;
    char reason[200];
    uint32_t module = 99;
    IS(hvci_create(&host, config, &engine), HV_STATUS_SUCCESS);

    /* a table that ends where the first edition did, in memory that ends there too: the module is at its base */
    struct HvciLoadV1 *first = malloc(72);
    MUST(first != NULL);
    load.size = 72;
    memcpy(first, &load, 72);
    lay_out(4);
    IS(hvci_load(engine, first, &module, reason, sizeof reason), HV_STATUS_SUCCESS);
    free(first);
    IS(hvci_unload(engine, module), HV_STATUS_SUCCESS);
    load.size = sizeof load;

    lay_out(4);
    memcpy(machine.ram + 12 * PAGE, machine.ram + 6 * PAGE, PAGE);
    memcpy(machine.ram + 9 * PAGE, machine.ram + 7 * PAGE, PAGE);
    memset(machine.ram + 6 * PAGE, 0x55, 2 * PAGE);
    load.sections = sections;
    load.section_count = 4;
    load.areas = areas;
    load.area_count = 3;
    /* it is at its base too? */
    IS(hvci_load(engine, &load, &module, reason, sizeof reason), HV_STATUS_INVALID_PARAMETER);
    load.base = 0;
    IS(hvci_load(engine, &load, &module, reason, sizeof reason), HV_STATUS_INVALID_PARAMETER);
    load.pages = NULL;
    load.page_count = 0;
    /* areas that nothing is said to be in, sections that nobody has or that are in no area */
    load.section_count = 0;
    IS(hvci_load(engine, &load, &module, reason, sizeof reason), HV_STATUS_INVALID_PARAMETER);
    load.section_count = 3;
    IS(hvci_load(engine, &load, &module, reason, sizeof reason), HV_STATUS_INVALID_PARAMETER);
    MUST(strncmp(reason, "HVCI-MEM-", 9) == 0);
    load.section_count = 4;
    sections[0].number = UINT64_MAX;
    IS(hvci_load(engine, &load, &module, reason, sizeof reason), HV_STATUS_INVALID_PARAMETER);
    sections[0].number = 5;
    load.area_count = 2;
    IS(hvci_load(engine, &load, &module, reason, sizeof reason), HV_STATUS_INVALID_PARAMETER);
    load.area_count = 3;
    load.areas = NULL;
    IS(hvci_load(engine, &load, &module, reason, sizeof reason), HV_STATUS_INVALID_PARAMETER);
    load.areas = areas;
    /* not where it is said to be */
    areas[2].pages = init;
    areas[0].pages = data;
    IS(hvci_load(engine, &load, &module, reason, sizeof reason), HV_STATUS_ACCESS_DENIED);
    IS(module, 0);
    areas[0].pages = init;
    areas[2].pages = data;

    IS(hvci_load(engine, &load, &module, reason, sizeof reason), HV_STATUS_SUCCESS);
    const uint32_t code = HV_MAP_GPA_READABLE | HV_MAP_GPA_KERNEL_EXECUTABLE | HV_MAP_GPA_USER_EXECUTABLE;
    MUST(module != 0 && machine.allowed[0][4] == code && machine.allowed[0][9] == code);
    IS(machine.allowed[0][5], HV_MAP_GPA_READABLE);
    MUST((machine.allowed[0][12] & HV_MAP_GPA_WRITABLE) != 0 && (machine.allowed[0][12] & HV_MAP_GPA_KERNEL_EXECUTABLE) == 0);
    MUST((machine.allowed[0][6] & HV_MAP_GPA_WRITABLE) != 0 && (machine.allowed[0][7] & HV_MAP_GPA_KERNEL_EXECUTABLE) == 0);
    IS(hvci_unload(engine, module), HV_STATUS_SUCCESS);
    MUST(is_zero(4) && is_zero(9));
    hvci_destroy(engine);
    printf("placed by sections\n");
}

/* a driver that carries no signature: a catalog speaks for it, until a list of what is refused names it */
static void a_driver_is_accepted_by_its_catalog(struct HvciConfigV1 config, struct HvciLoadV1 load, char **files)
{
    size_t driver_len, list_len, der_len, blocked_len;
    const uint8_t *driver = read_file(files[0], &driver_len);
    const uint8_t *list = read_file(files[1], &list_len);
    const uint8_t *der = read_file(files[2], &der_len);
    const uint8_t *blocked = read_file(files[3], &blocked_len);
    const struct HvciHostV1 host = host_table();
    struct HvciKey key = {0};
    key.der = der;
    key.len = der_len;
    key.purposes = HVCI_PURPOSE_KERNEL;
    config.keys = &key;
    struct HvciCatalog catalogs[] = {{list, list_len}, {list, list_len}};
    config.catalogs = catalogs;
    config.catalog_count = 2;

    const uint64_t pages[] = {8, 9, 10, 11, 12};
    char reason[200];
    uint32_t module = 99;
    load.name = "driver.sys";
    load.file = driver;
    load.file_len = driver_len;
    load.pages = pages;
    load.page_count = DRIVER_PAGES;

    /* a table of the first edition has no catalogs: nothing speaks for the driver */
    struct HvciEngine *engine = NULL;
    config.size = offsetof(struct HvciConfigV1, catalogs);
    IS(hvci_create(&host, &config, &engine), HV_STATUS_SUCCESS);
    lay_out_driver(8, driver);
    IS(hvci_load(engine, &load, &module, reason, sizeof reason), HV_STATUS_ACCESS_DENIED);
    printf("without a catalog: %s\n", reason);
    hvci_destroy(engine);
    config.size = sizeof config;
    /* what is none */
    catalogs[1].der = der;
    catalogs[1].len = der_len;
    IS(hvci_create(&host, &config, &engine), HV_STATUS_INVALID_PARAMETER);
    catalogs[1].der = NULL;
    IS(hvci_create(&host, &config, &engine), HV_STATUS_INVALID_PARAMETER);
    config.catalogs = NULL;
    IS(hvci_create(&host, &config, &engine), HV_STATUS_INVALID_PARAMETER);
    config.catalogs = catalogs;
    catalogs[1] = catalogs[0];
    /* a catalog whose signer nobody trusts */
    config.key_count = 0;
    IS(hvci_create(&host, &config, &engine), HV_STATUS_SUCCESS);
    IS(hvci_load(engine, &load, &module, reason, sizeof reason), HV_STATUS_ACCESS_DENIED);
    printf("by a catalog of nobody's: %s\n", reason);
    hvci_destroy(engine);
    config.key_count = 1;

    IS(hvci_create(&host, &config, &engine), HV_STATUS_SUCCESS);
    struct HvciSection section = {1, BASE};
    struct HvciArea area = {BASE, pages, DRIVER_PAGES};
    struct HvciLoadV1 by_sections = load;
    by_sections.base = 0;
    by_sections.page_count = 0;
    by_sections.sections = &section;
    by_sections.section_count = 1;
    by_sections.areas = &area;
    by_sections.area_count = 1;
    IS(hvci_load(engine, &by_sections, &module, reason, sizeof reason), HV_STATUS_INVALID_PARAMETER);
    IS(hvci_load(engine, &load, &module, reason, sizeof reason), HV_STATUS_SUCCESS);
    MUST(module != 0 && (machine.allowed[0][9] & HV_MAP_GPA_KERNEL_EXECUTABLE) != 0 && machine.allowed[0][8] == HV_MAP_GPA_READABLE);
    printf("accepted by its catalog\n");

    /* what is loaded stays, and comes in no more */
    IS(hvci_replace_blocked(engine, (const uint8_t *)"{}", 2), HV_STATUS_INVALID_PARAMETER);
    IS(hvci_replace_blocked(engine, blocked, blocked_len - 1), HV_STATUS_INVALID_PARAMETER);
    IS(hvci_replace_blocked(engine, blocked, blocked_len), HV_STATUS_SUCCESS);
    MUST((machine.allowed[0][9] & HV_MAP_GPA_KERNEL_EXECUTABLE) != 0);
    IS(hvci_unload(engine, module), HV_STATUS_SUCCESS);
    lay_out_driver(8, driver);
    IS(hvci_load(engine, &load, &module, reason, sizeof reason), HV_STATUS_ACCESS_DENIED);
    MUST((machine.allowed[0][9] & HV_MAP_GPA_KERNEL_EXECUTABLE) == 0);
    printf("blocked: %s\n", reason);
    static const char older[] = "{\"version\": 1}", newer[] = "{\"version\": 3}";
    IS(hvci_replace_blocked(engine, (const uint8_t *)older, strlen(older)), HV_STATUS_OPERATION_DENIED);
    IS(hvci_end_of_boot(engine), HV_STATUS_SUCCESS);
    IS(hvci_load(engine, &load, &module, reason, sizeof reason), HV_STATUS_ACCESS_DENIED);
    IS(hvci_replace_blocked(engine, (const uint8_t *)newer, strlen(newer)), HV_STATUS_SUCCESS);
    IS(hvci_load(engine, &load, &module, reason, sizeof reason), HV_STATUS_SUCCESS);
    hvci_destroy(engine);
}

/* functions of the vault: `Function` of `hvci_engine::vault` */
#define ADD_KEY 0x30201u
#define REMOVE 0x30203u
#define LIST 0x30204u
#define ENCRYPT 0x30300u
#define DECRYPT 0x30301u

/* pages of the vault's, the first of which has an alias, and one that the guest's arguments are in */
#define VAULT 4u
#define VAULT_ALIAS ALIAS_OF_TEXT
#define MORE_OF_VAULT 13u
#define ARGUMENTS 1u
#define MODULE 8u

/* what the guest's code at `code` asks for, the words behind the function, zeros behind them */
static uint16_t ask(const struct HvciEngine *engine, uint64_t code, uint64_t function, const uint64_t *words, size_t count,
                    uint64_t *answer)
{
    uint64_t block[HVCI_VTL_CALL_SIZE / 8] = {function};
    MUST(count < sizeof block / sizeof *block);
    for (size_t i = 0; i < count; i++)
        block[1 + i] = words[i];
    return hvci_secure_call(engine, (const uint8_t *)block, 0, code, 1000000, answer);
}

/* an engine with the module, whose code is the only one that there is */
static struct HvciEngine *boot(const struct HvciConfigV1 *config, const struct HvciLoadV1 *load)
{
    struct HvciEngine *engine = NULL;
    const struct HvciHostV1 host = host_table();
    uint32_t module = 0;
    IS(hvci_create(&host, config, &engine), HV_STATUS_SUCCESS);
    lay_out(MODULE);
    IS(hvci_load(engine, load, &module, NULL, 0), HV_STATUS_SUCCESS);
    return engine;
}

static void the_vault_answers_the_module_alone(const struct HvciConfigV1 *config, struct HvciLoadV1 load)
{
    const uint64_t module_pages[] = {MODULE, MODULE + 1, MODULE + 2, MODULE + 3};
    const uint64_t vault_pages[] = {VAULT, MORE_OF_VAULT};
    static const uint8_t seeds[4][HVCI_VAULT_SEED_SIZE] = {"random, were it a real VMM", "of the second boot", "of the third", "of the last"};
    static const char policy[] = "{\"budget\": 1000}", no_policy[] = "{\"budget\": \"all\"}";
    const uint64_t code = MODULE * PAGE + 16, arguments = ARGUMENTS * PAGE;
    load.pages = module_pages;

    const struct HvciKeeperV1 keeps = keeper_table();
    struct HvciVaultV1 vault = {0};
    vault.version = HVCI_V1;
    vault.size = sizeof vault;
    vault.pages = vault_pages;
    vault.page_count = 2;
    vault.vm_id[0] = 7;
    vault.boot_id[0] = 1;
    vault.seed = seeds[0];
    vault.policy = (const uint8_t *)policy;
    vault.policy_len = strlen(policy);
    vault.keeper = &keeps;

    /* what cannot be opened leaves nothing open */
    struct HvciEngine *engine = boot(config, &load);
    uint32_t opened = 99;
    struct HvciVaultV1 other = vault;
    other.size = sizeof other - 8;
    IS(hvci_vault_open(engine, &other, &opened), HV_STATUS_INVALID_PARAMETER);
    IS(opened, 0);
    other = vault;
    other.seed = NULL;
    IS(hvci_vault_open(engine, &other, NULL), HV_STATUS_INVALID_PARAMETER);
    other = vault;
    other.policy = (const uint8_t *)no_policy;
    other.policy_len = strlen(no_policy);
    IS(hvci_vault_open(engine, &other, NULL), HV_STATUS_INVALID_PARAMETER);
    other = vault;
    other.page_count = 0;
    IS(hvci_vault_open(engine, &other, NULL), HV_STATUS_INSUFFICIENT_MEMORY);
    struct HvciKeeperV1 less = keeps;
    less.unseal = NULL;
    other = vault;
    other.keeper = &less;
    IS(hvci_vault_open(engine, &other, NULL), HV_STATUS_INVALID_PARAMETER);
    MUST((machine.allowed[0][VAULT] & HV_MAP_GPA_WRITABLE) != 0);

    /* a new one: its pages are nobody's but VTL 1's, by every name */
    IS(hvci_vault_open(engine, &vault, &opened), HV_STATUS_SUCCESS);
    IS(opened, HVCI_VAULT_NEW);
    IS(hvci_vault_open(engine, &vault, &opened), HV_STATUS_INVALID_PARTITION_STATE);
    MUST(opened == 0 && machine.allowed[0][VAULT] == 0 && machine.allowed[0][VAULT_ALIAS] == 0 && keeper.replaced == 1);
    IS(hvci_check(engine, 0, VAULT * PAGE, 16, HVCI_ACCESS_READ), HV_STATUS_ACCESS_DENIED);
    IS(hvci_check(engine, 0, VAULT_ALIAS * PAGE + 128, 1, HVCI_ACCESS_READ), HV_STATUS_ACCESS_DENIED);
    IS(hvci_check(engine, 0, MORE_OF_VAULT * PAGE, PAGE, HVCI_ACCESS_WRITE), HV_STATUS_ACCESS_DENIED);
    static struct text saved;
    IS(hvci_save(engine, append, &saved), HV_STATUS_SUCCESS);
    IS(hvci_restore(engine, (const uint8_t *)saved.bytes, saved.len), HV_STATUS_INVALID_PARTITION_STATE);

    /* who asks from anywhere but a module's code is nobody; what is not the vault's is the loader's */
    uint64_t answer = 1;
    IS(ask(engine, HVCI_NO_CODE, LIST, NULL, 0, &answer), HV_STATUS_ACCESS_DENIED);
    IS(answer, 0);
    IS(ask(engine, arguments, LIST, NULL, 0, NULL), HV_STATUS_ACCESS_DENIED);
    IS(ask(engine, (MODULE + 1) * PAGE, LIST, NULL, 0, NULL), HV_STATUS_ACCESS_DENIED);
    IS(ask(engine, 1ull << 60, LIST, NULL, 0, NULL), HV_STATUS_ACCESS_DENIED);
    IS(ask(engine, code, 0x39999, NULL, 0, NULL), HV_STATUS_FEATURE_UNAVAILABLE);
    const uint64_t list[HVCI_VTL_CALL_SIZE / 8] = {LIST};
    IS(hvci_vtl_call(engine, (const uint8_t *)list, 0, load.time, NULL), HV_STATUS_FEATURE_UNAVAILABLE);

    /* the module has a key made, and what it encrypts by it comes back; the key never does */
    uint8_t *at_arguments = machine.ram + arguments;
    memset(at_arguments, 0, PAGE);
    memcpy(at_arguments, "disk", 4);
    memcpy(at_arguments + 64, "a secret", 8);
    const uint64_t add[] = {1, arguments, 4, arguments, 0, arguments, 0, arguments, 0, 1};
    uint64_t key = 0;
    IS(ask(engine, code, ADD_KEY, add, 10, &key), HV_STATUS_SUCCESS);
    uint64_t encrypt[] = {key, arguments + 64, 8, arguments, 4, arguments + 128, 8};
    IS(ask(engine, code, ENCRYPT, encrypt, 7, &answer), HV_STATUS_INSUFFICIENT_MEMORY);
    MUST(answer > 8 && answer < 100);
    encrypt[6] = 100;
    IS(ask(engine, code, ENCRYPT, encrypt, 7, &answer), HV_STATUS_SUCCESS);
    const uint64_t decrypt[] = {key, arguments + 128, answer, arguments, 4, arguments + 256, 16};
    IS(ask(engine, code, DECRYPT, decrypt, 7, &answer), HV_STATUS_SUCCESS);
    MUST(answer == 8 && memcmp(at_arguments + 256, "a secret", 8) == 0);
    const uint64_t into_the_vault[] = {key, arguments + 128, decrypt[2], arguments, 4, VAULT * PAGE, 16};
    IS(ask(engine, code, DECRYPT, into_the_vault, 7, NULL), HV_STATUS_ACCESS_DENIED);
    printf("the vault has answered\n");

    /* the policy has a budget: each use was kept before there was an answer */
    IS(keeper.replaced, 5);
    static struct keeper older;
    older = keeper;
    uint64_t another = 0;
    IS(ask(engine, code, ADD_KEY, add, 10, &another), HV_STATUS_SUCCESS);
    IS(ask(engine, code, REMOVE, &another, 1, NULL), HV_STATUS_SUCCESS);
    /* the rest is kept when it is asked for, and as often as something is to be kept */
    IS(hvci_vault_commit(engine), HV_STATUS_SUCCESS);
    IS(keeper.replaced, 6);
    IS(hvci_vault_commit(engine), HV_STATUS_SUCCESS);
    IS(keeper.replaced, 6);
    IS(hvci_vault_rotate(engine), HV_STATUS_SUCCESS);
    IS(keeper.replaced, 7);
    text.len = 0;
    IS(hvci_take_events(engine, append, &text, NULL), HV_STATUS_SUCCESS);
    MUST(strstr(text.bytes, "\"credential\"") != NULL);
    MUST(!is_zero(VAULT));
    hvci_destroy(engine);
    MUST(is_zero(VAULT) && is_zero(MORE_OF_VAULT));

    /* the next boot: what is older than what was kept is refused, a key that is not released may be later, and the pages are the same */
    engine = boot(config, &load);
    vault.boot_id[0] = 2;
    vault.seed = seeds[1];
    struct HvciKeeperV1 keeps_older = keeps;
    older.counter = keeper.counter;
    keeps_older.ctx = &older;
    other = vault;
    other.keeper = &keeps_older;
    IS(hvci_vault_open(engine, &other, &opened), HV_STATUS_ACCESS_DENIED);
    keeper.failing = HV_STATUS_ACCESS_DENIED;
    IS(hvci_vault_open(engine, &vault, &opened), HV_STATUS_OPERATION_DENIED);
    IS(opened, 0);
    IS(hvci_check(engine, 0, VAULT * PAGE, 1, HVCI_ACCESS_READ), HV_STATUS_ACCESS_DENIED);
    keeper.failing = HV_STATUS_SUCCESS;
    IS(hvci_vault_open(engine, &vault, &opened), HV_STATUS_SUCCESS);
    IS(opened, HVCI_VAULT_KEPT);
    memset(at_arguments + 256, 0, 16);
    IS(ask(engine, code, DECRYPT, decrypt, 7, &answer), HV_STATUS_SUCCESS);
    MUST(answer == 8 && memcmp(at_arguments + 256, "a secret", 8) == 0);
    hvci_destroy(engine);

    /* a machine that is restored: its vault is what was kept, in the same pages */
    const struct HvciHostV1 host = host_table();
    IS(hvci_create(&host, config, &engine), HV_STATUS_SUCCESS);
    IS(hvci_restore(engine, (const uint8_t *)saved.bytes, saved.len), HV_STATUS_SUCCESS);
    vault.boot_id[0] = 3;
    vault.seed = seeds[2];
    IS(hvci_vault_open(engine, &vault, &opened), HV_STATUS_SUCCESS);
    IS(opened, HVCI_VAULT_KEPT);
    IS(ask(engine, code, DECRYPT, decrypt, 7, &answer), HV_STATUS_SUCCESS);
    IS(hvci_check(engine, 0, VAULT_ALIAS * PAGE, 1, HVCI_ACCESS_READ), HV_STATUS_ACCESS_DENIED);
    hvci_destroy(engine);

    /* a key that is gone */
    engine = boot(config, &load);
    vault.boot_id[0] = 4;
    vault.seed = seeds[3];
    keeper.failing = HV_STATUS_NOT_FOUND;
    IS(hvci_vault_open(engine, &vault, &opened), HV_STATUS_SUCCESS);
    IS(opened, HVCI_VAULT_LOST);
    IS(ask(engine, code, DECRYPT, decrypt, 7, NULL), HV_STATUS_NOT_FOUND);
    hvci_destroy(engine);
    printf("the vault was kept, and lost\n");
}

int main(int argc, char **argv)
{
    MUST(argc == 8);
    IS(hvci_version(), HVCI_VERSION);

    size_t file_len, der_len;
    uint8_t *file = read_file(argv[1], &file_len);
    const uint8_t *der = read_file(argv[2], &der_len);

    const struct HvciGpnRange ram = {0, PAGES};
    struct HvciKey key = {0};
    key.der = der;
    key.len = der_len;
    key.purposes = HVCI_PURPOSE_MODULE;
    struct HvciConfigV1 config = {0};
    config.version = HVCI_V1;
    config.size = sizeof config;
    config.capabilities = HVCI_CAPABILITY_MBEC | HVCI_CAPABILITY_DEVICE_VIEW | HVCI_CAPABILITY_ALIASES;
    config.trust = HVCI_TRUST_BUILTIN;
    config.ram = &ram;
    config.ram_count = 1;
    config.frame_count = FRAMES;
    config.vps = 1;
    config.event_capacity = 64;
    config.keys = &key;
    config.key_count = 1;

    tables_are_checked(&config);
    struct HvciEngine *engine = NULL;
    const struct HvciHostV1 host = host_table();
    IS(hvci_create(&host, &config, &engine), HV_STATUS_SUCCESS);
    struct HvciVpV1 vp = vp_table();
    null_is_refused(engine, &vp);
    IS(machine.allowed[0][4], HV_MAP_GPA_READABLE | HV_MAP_GPA_WRITABLE | HV_MAP_GPA_USER_EXECUTABLE);
    printf("created\n");

    /* a module whose bytes are not those that were signed for */
    const uint64_t pages[] = {4, 5, 6, 7};
    char reason[200];
    uint32_t module = 99;
    struct HvciLoadV1 load = {0};
    load.version = HVCI_V1;
    load.size = sizeof load;
    load.name = "module";
    load.file = file;
    load.file_len = file_len;
    load.base = BASE;
    load.pages = pages;
    load.page_count = 4;
    load.time = strtoll(argv[3], NULL, 10);
    load.vp = HVCI_NO_VP;
    lay_out(4);
    machine.ram[4 * PAGE + 1] = 43;
    IS(hvci_load(engine, &load, &module, reason, sizeof reason), HV_STATUS_ACCESS_DENIED);
    IS(module, 0);
    printf("refused: %s\n", reason);
    MUST((machine.allowed[0][4] & HV_MAP_GPA_KERNEL_EXECUTABLE) == 0);
    /* a file that was changed behind its signature */
    lay_out(4);
    file[0x41] = 43;
    machine.ram[4 * PAGE + 1] = 43;
    IS(hvci_load(engine, &load, &module, reason, sizeof reason), HV_STATUS_ACCESS_DENIED);
    printf("refused: %s\n", reason);
    char brief[9];
    IS(hvci_load(engine, &load, &module, brief, sizeof brief), HV_STATUS_ACCESS_DENIED);
    MUST(strlen(brief) == 8 && strncmp(brief, reason, 8) == 0);
    file[0x41] = 42;

    /* the module */
    lay_out(4);
    load.page_count = 3;
    IS(hvci_load(engine, &load, &module, NULL, 0), HV_STATUS_INVALID_PARAMETER);
    load.page_count = 4;
    unsigned before = machine.quiesced;
    IS(hvci_load(engine, &load, &module, reason, sizeof reason), HV_STATUS_SUCCESS);
    MUST(module != 0 && reason[0] == 0 && machine.quiesced > before);
    const uint32_t code = HV_MAP_GPA_READABLE | HV_MAP_GPA_KERNEL_EXECUTABLE | HV_MAP_GPA_USER_EXECUTABLE;
    IS(machine.allowed[0][4], code);
    IS(machine.allowed[0][ALIAS_OF_TEXT], code);
    IS(machine.allowed[0][5], HV_MAP_GPA_READABLE);
    MUST((machine.allowed[0][6] & HV_MAP_GPA_WRITABLE) != 0);
    printf("loaded\n");

    /* a device asks, for the page and for its alias */
    IS(hvci_check(engine, 0, 4 * PAGE, 512, HVCI_ACCESS_WRITE), HV_STATUS_ACCESS_DENIED);
    IS(hvci_check(engine, 0, ALIAS_OF_TEXT * PAGE, 1, HVCI_ACCESS_WRITE), HV_STATUS_ACCESS_DENIED);
    IS(hvci_check(engine, 0, 3 * PAGE, PAGE + 1, HVCI_ACCESS_WRITE), HV_STATUS_ACCESS_DENIED);
    IS(hvci_check(engine, 0, 4 * PAGE, 512, HVCI_ACCESS_READ), HV_STATUS_SUCCESS);
    IS(hvci_check(engine, 0, 6 * PAGE, 512, HVCI_ACCESS_WRITE), HV_STATUS_SUCCESS);

    /* a processor tries, and exits */
    struct HvciMemoryInterceptV1 intercept = {0};
    intercept.version = HVCI_V1;
    intercept.size = sizeof intercept;
    intercept.gpa = 4 * PAGE + 1;
    intercept.gva = BASE + 1;
    intercept.rip = 0x1000;
    intercept.access = HVCI_ACCESS_WRITE;
    intercept.flags = HVCI_INTERCEPT_GVA;
    uint32_t action = HVCI_ACTION_RESUME;
    IS(hvci_on_memory(engine, &vp, &intercept, &action), HV_STATUS_SUCCESS);
    IS(action, HVCI_ACTION_INJECTED_FAULT);
    MUST(cpu.injected == 1 && cpu.vector == 13 && cpu.has_error_code && cpu.error_code == 0);
    intercept.access = HVCI_ACCESS_KERNEL_EXECUTE;
    IS(hvci_on_memory(engine, &vp, &intercept, &action), HV_STATUS_SUCCESS);
    IS(action, HVCI_ACTION_RESUME);
    intercept.access = HVCI_ACCESS_USER_EXECUTE + 1;
    IS(hvci_on_memory(engine, &vp, &intercept, &action), HV_STATUS_INVALID_PARAMETER);
    IS(action, HVCI_ACTION_TERMINATE);

    /* the guest enables VTL 1 (HvCallEnablePartitionVtl), and so MBEC; once */
    uint8_t input[16];
    memset(input, 0xff, 8);
    memset(input + 8, 0, 8);
    input[8] = input[9] = 1;
    uint16_t reps = 7;
    IS(hvci_hypercall(engine, &vp, 0, 0x0d, input, sizeof input, NULL, 0, &reps), HV_STATUS_SUCCESS);
    IS(reps, 0);
    IS(hvci_hypercall(engine, &vp, 0, 0x0d, input, sizeof input, NULL, 0, NULL), HV_STATUS_VTL_ALREADY_ENABLED);

    /* a register of 128 bits there and back (HvCallSetVpRegisters, HvCallGetVpRegisters of HvX64RegisterXmm0) */
    uint8_t set[48] = {0}, get[20], value[16] = {0};
    memset(set, 0xff, 8);
    set[18] = 3;
    for (uint8_t i = 0; i < 16; i++)
        set[32 + i] = i + 1;
    memcpy(get, set, sizeof get);
    IS(hvci_hypercall(engine, &vp, 0, 0x51 | 1ull << 32, set, sizeof set, NULL, 0, &reps), HV_STATUS_SUCCESS);
    MUST(reps == 1 && cpu.low == 0x0807060504030201 && cpu.high == 0x100f0e0d0c0b0a09);
    IS(hvci_hypercall(engine, &vp, 0, 0x50 | 1ull << 32, get, sizeof get, value, sizeof value, &reps), HV_STATUS_SUCCESS);
    MUST(reps == 1 && memcmp(value, set + 32, sizeof value) == 0);

    /* the guest says by a VTL call that the initialisation is over (VSM_VTL_CALL_FUNC_ID_FREE_MODULE_INIT) */
    uint8_t block[HVCI_VTL_CALL_SIZE] = {0xe7, 0xff, 0x01};
    uint64_t answer = 1;
    memcpy(block + 8, &module, sizeof module);
    IS(hvci_vtl_call(engine, block, 0, load.time, &answer), HV_STATUS_SUCCESS);
    MUST(answer == 0 && is_zero(7) && !is_zero(4));
    MUST((machine.allowed[0][7] & HV_MAP_GPA_KERNEL_EXECUTABLE) == 0);

    /* from the end of boot on, CR4 is pinned */
    const uint64_t smep = 1u << 20;
    IS(hvci_end_of_boot(engine), HV_STATUS_SUCCESS);
    IS(hvci_on_register_write(engine, &vp, CR4, smep, smep | 1u << 7, &action), HV_STATUS_SUCCESS);
    IS(hvci_on_register_write(engine, &vp, CR4, smep, 0, &action), HV_STATUS_SUCCESS);
    IS(action, HVCI_ACTION_INJECTED_FAULT);
    MUST(cpu.injected >= 2);
    printf("refused what it must\n");

    /* what it says about it */
    uint64_t lost = 1;
    IS(hvci_take_events(engine, append, &text, &lost), HV_STATUS_SUCCESS);
    MUST(lost == 0 && text.pieces > 5);
    printf("events:\n%s", text.bytes);
    unsigned pieces = text.pieces;
    IS(hvci_take_events(engine, append, &text, NULL), HV_STATUS_SUCCESS);
    IS(text.pieces, pieces);

    /* a snapshot is taken over by the same machine and by a new one, never by one that has come farther */
    text.len = 0;
    IS(hvci_save(engine, append, &text), HV_STATUS_SUCCESS);
    const uint8_t *saved = (const uint8_t *)text.bytes;
    machine.allowed[0][4] = 0;
    IS(hvci_restore(engine, saved, text.len), HV_STATUS_SUCCESS);
    IS(machine.allowed[0][4], code);
    IS(hvci_restore(engine, saved, text.len - 1), HV_STATUS_INVALID_PARAMETER);
    struct HvciEngine *migrated = NULL;
    IS(hvci_create(&host, &config, &migrated), HV_STATUS_SUCCESS);
    MUST(machine.allowed[0][4] != code);
    IS(hvci_restore(migrated, saved, text.len), HV_STATUS_SUCCESS);
    IS(machine.allowed[0][4], code);
    IS(hvci_check(migrated, 0, 4 * PAGE, 1, HVCI_ACCESS_WRITE), HV_STATUS_ACCESS_DENIED);
    /* it knows the module: what it is told is the host's status, not that there is none */
    machine.failing = STATUS_OF_THE_HOST;
    IS(hvci_unload(migrated, module), STATUS_OF_THE_HOST);
    machine.failing = HV_STATUS_SUCCESS;
    IS(hvci_unload(migrated, module + 1), HV_STATUS_NOT_FOUND);
    hvci_destroy(migrated);
    printf("restored\n");

    /* a host that fails: the module stays, and what it may do is narrower at most */
    machine.failing = STATUS_OF_THE_HOST;
    IS(hvci_unload(engine, module), STATUS_OF_THE_HOST);
    machine.failing = HV_STATUS_SUCCESS;
    MUST(!is_zero(4));
    IS(hvci_check(engine, 0, 4 * PAGE, 1, HVCI_ACCESS_WRITE), HV_STATUS_ACCESS_DENIED);
    IS(hvci_unload(engine, module), HV_STATUS_SUCCESS);
    MUST(is_zero(4) && is_zero(5));
    MUST((machine.allowed[0][4] & HV_MAP_GPA_KERNEL_EXECUTABLE) == 0 && (machine.allowed[0][ALIAS_OF_TEXT] & HV_MAP_GPA_WRITABLE) != 0);
    IS(hvci_unload(engine, module), HV_STATUS_NOT_FOUND);
    IS(hvci_restore(engine, saved, text.len), HV_STATUS_OPERATION_DENIED);
    hvci_destroy(engine);
    printf("unloaded\n");

    sections_are_where_they_are_said_to_be(&config, load);
    the_vault_answers_the_module_alone(&config, load);
    a_driver_is_accepted_by_its_catalog(config, load, argv + 4);
    printf("%d checks\n", checks);
    return 0;
}
