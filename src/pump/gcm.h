/* AES-GCM packet protection (RFC 5647, aes*-gcm@openssh.com) through libcrypto.
 *
 * libcrypto is opened at run time: nothing is linked, bundled or needed to build.
 * rt_gcm_load must have succeeded once in the process before a key is made.
 */
#ifndef RT_GCM_H
#define RT_GCM_H

#include <stddef.h>
#include <stdint.h>

#define RT_GCM_IV_BYTES 12
#define RT_GCM_TAG_BYTES 16
#define RT_GCM_BLOCK_BYTES 16
/* OpenSSL 3.0.0, the oldest libcrypto that still gets fixes. */
#define RT_GCM_MIN_VERSION 0x30000000UL

typedef struct rt_gcm rt_gcm;

/* Open libcrypto (`path`, or the newest one found if NULL) and run a known-answer
 * test. Thread-safe; later calls return the first result. Returns 0, or -1 with the
 * reason in `why` (always terminated). */
int rt_gcm_load(const char *path, char *why, size_t why_len);

/* File name and version text of the loaded library, "" before rt_gcm_load. Static. */
const char *rt_gcm_library(void);
const char *rt_gcm_version(void);

/* A key for one direction. `key_len` is 16 or 32. NULL: out of memory, bad length or
 * no library. rt_gcm_free zeroes the key and takes NULL. */
rt_gcm *rt_gcm_new(const uint8_t *key, size_t key_len,
                   const uint8_t iv[RT_GCM_IV_BYTES], int sealing);
void rt_gcm_free(rt_gcm *gcm);

/* Seal or open one packet in place. `packet` is the 4-byte length (authenticated, in
 * clear) and `len` bytes after it; `tag` is RT_GCM_TAG_BYTES. The invocation counter
 * goes up by one. Returns 0; -1: wrong tag, or libcrypto failed. */
int rt_gcm_seal(rt_gcm *gcm, uint8_t *packet, size_t len, uint8_t *tag);
int rt_gcm_open(rt_gcm *gcm, uint8_t *packet, size_t len, const uint8_t *tag);

#endif
