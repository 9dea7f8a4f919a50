/* AES-GCM without the cipher (gcm.h): a checksum in the place of the tag, which is wrong
 * if a byte changed, the key is another one or a packet is missing. libcrypto takes most
 * of the time of a short packet, and has nothing to do with what the messages do. */
#include "gcm.h"
#include "wire.h"

#include <stdlib.h>
#include <string.h>

struct rt_gcm {
    uint64_t state; /* of the key, and how often it was used */
};

int rt_gcm_load(const char *path, char *why, size_t why_len)
{
    (void)path;
    if (why_len > 0)
        why[0] = '\0';
    return 0;
}

rt_gcm *rt_gcm_new(const uint8_t *key, size_t key_len,
                   const uint8_t iv[RT_GCM_IV_BYTES], int sealing)
{
    (void)sealing;
    if (key_len != 16 && key_len != 32)
        return NULL;
    rt_gcm *gcm = calloc(1, sizeof *gcm);
    if (gcm != NULL)
        gcm->state = rt_get64(key) ^ rt_get64(iv);
    return gcm;
}

void rt_gcm_free(rt_gcm *gcm)
{
    free(gcm);
}

static void sum(rt_gcm *gcm, const uint8_t *packet, size_t len, uint8_t *tag)
{
    uint64_t all = ++gcm->state;
    for (size_t i = 0; i < 4 + len; i++)
        all = (all ^ packet[i]) * 0x100000001b3u;
    rt_put64(tag, all);
    rt_put64(tag + 8, ~all);
}

int rt_gcm_seal(rt_gcm *gcm, uint8_t *packet, size_t len, uint8_t *tag)
{
    sum(gcm, packet, len, tag);
    return 0;
}

int rt_gcm_open(rt_gcm *gcm, uint8_t *packet, size_t len, const uint8_t *tag)
{
    uint8_t wanted[RT_GCM_TAG_BYTES];
    sum(gcm, packet, len, wanted);
    return memcmp(wanted, tag, sizeof wanted) == 0 ? 0 : -1;
}
