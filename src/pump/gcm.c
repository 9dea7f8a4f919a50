/* Theory of operation
 *
 * One EVP context per direction keeps the expanded key; each packet only sets a new
 * nonce. The nonce is the 12-byte IV of the key exchange whose last 8 bytes count
 * packets (RFC 5647, section 7.1). The counter is kept here and not left to the
 * EVP_CTRL_GCM_IV_GEN controls, which behave alike in OpenSSL but not in its forks.
 *
 * The library is looked for in this order: the path given; copies that the process
 * has mapped already (the interpreter's own ssl module maps one, and two copies of
 * one library cost memory for nothing); then the loader's search path, newest first.
 */
#include "gcm.h"

#include "live.h"
#include "wire.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EVP_CTRL_AEAD_SET_IVLEN 0x9
#define EVP_CTRL_AEAD_GET_TAG 0x10
#define EVP_CTRL_AEAD_SET_TAG 0x11
#define OPENSSL_VERSION_TEXT 0

typedef struct evp_ctx evp_ctx;
typedef struct evp_cipher evp_cipher;

static struct {
    void *handle;
    char name[128];
    char version[128];
    unsigned long (*version_num)(void);
    const char *(*version_text)(int);
    evp_ctx *(*ctx_new)(void);
    void (*ctx_free)(evp_ctx *);
    int (*ctx_ctrl)(evp_ctx *, int, int, void *);
    const evp_cipher *(*aes_128_gcm)(void);
    const evp_cipher *(*aes_256_gcm)(void);
    int (*init)(evp_ctx *, const evp_cipher *, void *, const unsigned char *,
                const unsigned char *, int);
    int (*update)(evp_ctx *, unsigned char *, int *, const unsigned char *, int);
    int (*final)(evp_ctx *, unsigned char *, int *);
    void (*cleanse)(void *, size_t);
    void (*clear_error)(void);
} lib;

static pthread_mutex_t load_lock = PTHREAD_MUTEX_INITIALIZER;
static int load_result; /* 0 not tried, 1 loaded, -1 failed; under load_lock */
static char load_why[256];

struct rt_gcm {
    evp_ctx *ctx;
    uint8_t iv[RT_GCM_IV_BYTES];
};

static void *open_library(const char *path)
{
    static const char *const names[] = {"libcrypto.so.4", "libcrypto.so.3"};
    if (path != NULL && path[0] != '\0') {
        snprintf(lib.name, sizeof lib.name, "%s", path);
        return dlopen(path, RTLD_NOW | RTLD_LOCAL);
    }
    static const int modes[] = {RTLD_NOW | RTLD_LOCAL | RTLD_NOLOAD,
                                RTLD_NOW | RTLD_LOCAL};
    for (size_t m = 0; m < 2; m++)
        for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
            void *handle = dlopen(names[i], modes[m]);
            if (handle != NULL) {
                snprintf(lib.name, sizeof lib.name, "%s", names[i]);
                return handle;
            }
        }
    return NULL;
}

/* ISO C has no cast from void * to a function pointer; POSIX makes it work. */
static int bind_symbol(const char *symbol, void *slot)
{
    void *address = dlsym(lib.handle, symbol);
    if (address == NULL) {
        snprintf(load_why, sizeof load_why, "%s has no symbol %s", lib.name, symbol);
        return -1;
    }
    memcpy(slot, &address, sizeof address);
    return 0;
}

static int bind_symbols(void)
{
    return bind_symbol("OpenSSL_version_num", &lib.version_num) ||
           bind_symbol("OpenSSL_version", &lib.version_text) ||
           bind_symbol("EVP_CIPHER_CTX_new", &lib.ctx_new) ||
           bind_symbol("EVP_CIPHER_CTX_free", &lib.ctx_free) ||
           bind_symbol("EVP_CIPHER_CTX_ctrl", &lib.ctx_ctrl) ||
           bind_symbol("EVP_aes_128_gcm", &lib.aes_128_gcm) ||
           bind_symbol("EVP_aes_256_gcm", &lib.aes_256_gcm) ||
           bind_symbol("EVP_CipherInit_ex", &lib.init) ||
           bind_symbol("EVP_CipherUpdate", &lib.update) ||
           bind_symbol("EVP_CipherFinal_ex", &lib.final) ||
           bind_symbol("OPENSSL_cleanse", &lib.cleanse) ||
           bind_symbol("ERR_clear_error", &lib.clear_error);
}

/* Key, IV and text of test case 4 of McGrew and Viega, "The Galois/Counter Mode of
 * Operation", laid out as one SSH packet: 4 bytes of length as additional data, then
 * one block. The answer is the one that OpenSSL 3.0 and 4.0 both give. */
static int known_answer_test(void)
{
    static const uint8_t key[16] = {0xfe, 0xff, 0xe9, 0x92, 0x86, 0x65, 0x73, 0x1c,
                                    0x6d, 0x6a, 0x8f, 0x94, 0x67, 0x30, 0x83, 0x08};
    static const uint8_t iv[12] = {0xca, 0xfe, 0xba, 0xbe, 0xfa, 0xce,
                                   0xdb, 0xad, 0xde, 0xca, 0xf8, 0x88};
    static const uint8_t clear[20] = {0xfe, 0xed, 0xfa, 0xce, 0xd9, 0x31, 0x32,
                                      0x25, 0xf8, 0x84, 0x06, 0xe5, 0xa5, 0x59,
                                      0x09, 0xc5, 0xaf, 0xf5, 0x26, 0x9a};
    static const uint8_t sealed[16] = {0x42, 0x83, 0x1e, 0xc2, 0x21, 0x77, 0x74, 0x24,
                                       0x4b, 0x72, 0x21, 0xb7, 0x84, 0xd0, 0xd4, 0x9c};
    static const uint8_t expected_tag[16] = {0xe0, 0xb6, 0x99, 0xac, 0x8f, 0xbb, 0x32, 0xf7,
                                             0x2c, 0xbc, 0x2c, 0x52, 0x19, 0x4d, 0x5c, 0x59};
    uint8_t packet[20], tag[16];
    int ok = 0;

    rt_gcm *seal = rt_gcm_new(key, sizeof key, iv, 1);
    rt_gcm *open = rt_gcm_new(key, sizeof key, iv, 0);
    if (seal != NULL && open != NULL) {
        memcpy(packet, clear, sizeof packet);
        ok = rt_gcm_seal(seal, packet, 16, tag) == 0 &&
             memcmp(packet + 4, sealed, 16) == 0 &&
             memcmp(tag, expected_tag, 16) == 0 &&
             rt_gcm_open(open, packet, 16, tag) == 0 &&
             memcmp(packet, clear, sizeof packet) == 0;
        /* A library that takes any tag is worse than none. */
        tag[0] ^= 1;
        ok = ok && rt_gcm_open(open, packet, 16, tag) != 0;
    }
    rt_gcm_free(seal);
    rt_gcm_free(open);
    return ok ? 0 : -1;
}

static int load_once(const char *path)
{
    lib.handle = open_library(path);
    if (lib.handle == NULL) {
        snprintf(load_why, sizeof load_why, "no libcrypto 3.0 or newer found: %.160s",
                 dlerror());
        return -1;
    }
    if (bind_symbols() != 0)
        return -1;
    if (lib.version_num() < RT_GCM_MIN_VERSION) {
        snprintf(load_why, sizeof load_why, "%s is older than OpenSSL 3.0", lib.name);
        return -1;
    }
    load_result = 1; /* rt_gcm_new works from here on */
    if (known_answer_test() != 0) {
        snprintf(load_why, sizeof load_why, "%s failed the AES-GCM self-test",
                 lib.name);
        return -1;
    }
    snprintf(lib.version, sizeof lib.version, "%s",
             lib.version_text(OPENSSL_VERSION_TEXT));
    return 0;
}

int rt_gcm_load(const char *path, char *why, size_t why_len)
{
    pthread_mutex_lock(&load_lock);
    if (load_result == 0)
        load_result = load_once(path) == 0 ? 1 : -1;
    int result = load_result == 1 ? 0 : -1;
    if (why_len > 0)
        snprintf(why, why_len, "%s", load_why);
    pthread_mutex_unlock(&load_lock);
    return result;
}

const char *rt_gcm_library(void)
{
    return lib.name;
}

const char *rt_gcm_version(void)
{
    return lib.version;
}

rt_gcm *rt_gcm_new(const uint8_t *key, size_t key_len,
                   const uint8_t iv[RT_GCM_IV_BYTES], int sealing)
{
    if (load_result != 1 || (key_len != 16 && key_len != 32))
        return NULL;
    rt_gcm *gcm = calloc(1, sizeof *gcm);
    if (gcm == NULL)
        return NULL;
    rt_born(RT_LIVE_KEY);
    const evp_cipher *cipher = key_len == 16 ? lib.aes_128_gcm() : lib.aes_256_gcm();
    gcm->ctx = lib.ctx_new();
    if (gcm->ctx == NULL || lib.init(gcm->ctx, cipher, NULL, NULL, NULL, sealing) != 1 ||
        lib.ctx_ctrl(gcm->ctx, EVP_CTRL_AEAD_SET_IVLEN, RT_GCM_IV_BYTES, NULL) != 1 ||
        lib.init(gcm->ctx, NULL, NULL, key, iv, sealing) != 1) {
        rt_gcm_free(gcm);
        return NULL;
    }
    memcpy(gcm->iv, iv, RT_GCM_IV_BYTES);
    return gcm;
}

void rt_gcm_free(rt_gcm *gcm)
{
    if (gcm == NULL)
        return;
    if (gcm->ctx != NULL)
        lib.ctx_free(gcm->ctx); /* libcrypto zeroes the key schedule */
    lib.cleanse(gcm, sizeof *gcm);
    free(gcm);
    rt_gone(RT_LIVE_KEY);
}

/* Set this packet's nonce, authenticate the length field, then step the counter. */
static int begin_packet(rt_gcm *gcm, const uint8_t *packet, size_t len)
{
    int n = 0;
    if (len > INT32_MAX)
        return -1;
    if (lib.init(gcm->ctx, NULL, NULL, NULL, gcm->iv, -1) != 1 ||
        lib.update(gcm->ctx, NULL, &n, packet, 4) != 1)
        return -1;
    rt_put64(gcm->iv + 4, rt_get64(gcm->iv + 4) + 1);
    return 0;
}

int rt_gcm_seal(rt_gcm *gcm, uint8_t *packet, size_t len, uint8_t *tag)
{
    int n = 0;
    if (begin_packet(gcm, packet, len) != 0 ||
        lib.update(gcm->ctx, packet + 4, &n, packet + 4, (int)len) != 1 ||
        lib.final(gcm->ctx, packet + 4 + n, &n) != 1 ||
        lib.ctx_ctrl(gcm->ctx, EVP_CTRL_AEAD_GET_TAG, RT_GCM_TAG_BYTES, tag) != 1)
        return -1;
    return 0;
}

int rt_gcm_open(rt_gcm *gcm, uint8_t *packet, size_t len, const uint8_t *tag)
{
    int n = 0;
    uint8_t copy[RT_GCM_TAG_BYTES];
    memcpy(copy, tag, sizeof copy); /* the control takes a pointer that is not const */
    if (begin_packet(gcm, packet, len) != 0 ||
        lib.update(gcm->ctx, packet + 4, &n, packet + 4, (int)len) != 1 ||
        lib.ctx_ctrl(gcm->ctx, EVP_CTRL_AEAD_SET_TAG, RT_GCM_TAG_BYTES, copy) != 1 ||
        lib.final(gcm->ctx, packet + 4 + n, &n) != 1) {
        lib.clear_error();
        return -1;
    }
    return 0;
}
