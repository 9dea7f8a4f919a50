#include "check.h"
#include "gcm.h"
#include "wire.h"

#include <string.h>

#define TEXT_BYTES 32

/* Keys count from 0, the IV from 0xa0, the text from 0; the length field says 32. */
static const uint8_t iv[RT_GCM_IV_BYTES] = {0xa0, 0xa1, 0xa2, 0xa3, 0xa4, 0xa5,
                                            0xa6, 0xa7, 0xa8, 0xa9, 0xaa, 0xab};

/* Text and tag of a first and a second packet, as python-cryptography 50 seals them. */
static const uint8_t answers_128[2][TEXT_BYTES + RT_GCM_TAG_BYTES] = {
    {0xaa, 0x87, 0x3a, 0xb8, 0x7a, 0x8c, 0x35, 0x0d, 0x82, 0x71, 0xbf, 0x0b,
     0x4a, 0x1f, 0xbe, 0x6f, 0x43, 0xff, 0x31, 0x1b, 0x97, 0x02, 0x2b, 0xb8,
     0x3d, 0x09, 0x6b, 0x80, 0x5e, 0x90, 0x91, 0xb7, 0xfe, 0xe5, 0xe0, 0xa9,
     0x6a, 0xf3, 0x80, 0xfa, 0x21, 0x60, 0xf5, 0x93, 0xc3, 0x60, 0x66, 0xf7},
    {0xfc, 0x88, 0x43, 0x46, 0x68, 0xe4, 0x2a, 0xe7, 0xf4, 0xbe, 0x72, 0xbb,
     0x60, 0xe4, 0x89, 0xf7, 0x66, 0x65, 0x61, 0x30, 0xe9, 0xee, 0x2b, 0xf7,
     0xd5, 0x8c, 0xcb, 0x48, 0x0d, 0x77, 0x4f, 0x56, 0xfc, 0x1b, 0xc8, 0x45,
     0xb5, 0x18, 0x0e, 0x3d, 0xb5, 0xa2, 0x56, 0x0c, 0xf6, 0xe4, 0x08, 0xc6},
};
static const uint8_t answers_256[2][TEXT_BYTES + RT_GCM_TAG_BYTES] = {
    {0xe6, 0x19, 0x7e, 0x2e, 0x41, 0xce, 0x04, 0xb8, 0x6a, 0x6c, 0x8d, 0xd8,
     0x0b, 0x77, 0xce, 0xd1, 0x60, 0xbd, 0x4b, 0x03, 0x86, 0xa2, 0x54, 0x7b,
     0x84, 0x17, 0x3c, 0x9d, 0x63, 0xb6, 0x6b, 0x1e, 0xdc, 0x65, 0x42, 0x7f,
     0x57, 0x7e, 0x38, 0x61, 0x08, 0x71, 0x09, 0x7f, 0x57, 0xfe, 0x25, 0x25},
    {0xdb, 0xcd, 0x49, 0x19, 0x2f, 0xf1, 0x1a, 0x3f, 0xbc, 0xc4, 0x17, 0x8f,
     0x4c, 0xca, 0x03, 0x83, 0xa1, 0xe6, 0x05, 0x3c, 0x63, 0x27, 0x60, 0x93,
     0xb2, 0x11, 0xba, 0x14, 0x4a, 0x7d, 0xc6, 0x0b, 0xcb, 0x29, 0x11, 0x74,
     0x12, 0x10, 0x3e, 0xa0, 0xcd, 0xb6, 0x7e, 0xff, 0x5e, 0x6a, 0xce, 0x1f},
};
/* The tag of the same text under the IV 01020304 ffffffffffffffff, from there too. */
static const uint8_t tag_before_wrap[RT_GCM_TAG_BYTES] = {
    0xb9, 0x9e, 0x0b, 0xb2, 0x7b, 0xb2, 0x8c, 0xdf,
    0xa8, 0x11, 0x18, 0x4f, 0x9e, 0xc2, 0xda, 0xcb};

typedef struct {
    uint8_t bytes[4 + TEXT_BYTES];
    uint8_t tag[RT_GCM_TAG_BYTES];
} packet;

static packet clear_packet(void)
{
    packet p = {0};
    rt_put32(p.bytes, TEXT_BYTES);
    for (uint8_t i = 0; i < TEXT_BYTES; i++)
        p.bytes[4 + i] = i;
    return p;
}

static rt_gcm *new_key(size_t len, int sealing)
{
    uint8_t key[32];
    for (uint8_t i = 0; i < 32; i++)
        key[i] = i;
    rt_gcm *gcm = rt_gcm_new(key, len, iv, sealing);
    CHECK(gcm != NULL);
    return gcm;
}

static void no_key_can_be_made_before_the_library_is_loaded(void)
{
    const uint8_t key[16] = {0};
    CHECK(rt_gcm_new(key, sizeof key, iv, 1) == NULL);
    CHECK(strcmp(rt_gcm_version(), "") == 0);
}

static void loading_again_gives_the_first_result(void)
{
    char why[256] = "not touched";
    CHECK(rt_gcm_load(NULL, why, sizeof why) == 0);
    CHECK(strcmp(why, "") == 0);
    CHECK(rt_gcm_load("/no/such/library.so", why, sizeof why) == 0);
    CHECK(strncmp(rt_gcm_library(), "libcrypto.so.", 13) == 0);
    CHECK(strncmp(rt_gcm_version(), "OpenSSL ", 8) == 0);
}

static void packets_are_sealed_as_another_implementation_does(void)
{
    for (int i = 0; i < 2; i++) {
        rt_gcm *gcm = new_key(i ? 32 : 16, 1);
        for (int step = 0; step < 2; step++) {
            const uint8_t *answer = i ? answers_256[step] : answers_128[step];
            packet p = clear_packet();
            CHECK(rt_gcm_seal(gcm, p.bytes, TEXT_BYTES, p.tag) == 0);
            CHECK(rt_get32(p.bytes) == TEXT_BYTES);
            CHECK(memcmp(p.bytes + 4, answer, TEXT_BYTES) == 0);
            CHECK(memcmp(p.tag, answer + TEXT_BYTES, RT_GCM_TAG_BYTES) == 0);
        }
        rt_gcm_free(gcm);
    }
}

static void the_packet_counter_wraps_without_touching_the_fixed_field(void)
{
    uint8_t key[16], last_iv[RT_GCM_IV_BYTES] = {1, 2, 3, 4};
    for (uint8_t i = 0; i < 16; i++)
        key[i] = i;
    memset(last_iv + 4, 0xff, 8);
    rt_gcm *seal = rt_gcm_new(key, sizeof key, last_iv, 1);
    memset(last_iv + 4, 0, 8);
    rt_gcm *after_wrap = rt_gcm_new(key, sizeof key, last_iv, 0);
    packet p = clear_packet();
    CHECK(rt_gcm_seal(seal, p.bytes, TEXT_BYTES, p.tag) == 0);
    CHECK(memcmp(p.tag, tag_before_wrap, RT_GCM_TAG_BYTES) == 0);
    p = clear_packet();
    CHECK(rt_gcm_seal(seal, p.bytes, TEXT_BYTES, p.tag) == 0);
    CHECK(rt_gcm_open(after_wrap, p.bytes, TEXT_BYTES, p.tag) == 0);
    rt_gcm_free(seal);
    rt_gcm_free(after_wrap);
}

static void what_was_sealed_opens_to_the_same_bytes(void)
{
    rt_gcm *seal = new_key(32, 1), *open = new_key(32, 0);
    for (int i = 0; i < 100; i++) {
        packet p = clear_packet(), original = p;
        CHECK(rt_gcm_seal(seal, p.bytes, TEXT_BYTES, p.tag) == 0);
        CHECK(rt_gcm_open(open, p.bytes, TEXT_BYTES, p.tag) == 0);
        CHECK(memcmp(p.bytes, original.bytes, sizeof p.bytes) == 0);
    }
    rt_gcm_free(seal);
    rt_gcm_free(open);
}

static void a_changed_bit_anywhere_is_refused(void)
{
    rt_gcm *seal = new_key(16, 1);
    packet sealed = clear_packet();
    CHECK(rt_gcm_seal(seal, sealed.bytes, TEXT_BYTES, sealed.tag) == 0);
    for (size_t i = 0; i < 4 + TEXT_BYTES + RT_GCM_TAG_BYTES; i++) {
        rt_gcm *open = new_key(16, 0);
        packet p = sealed;
        uint8_t *byte =
            i < 4 + TEXT_BYTES ? p.bytes + i : p.tag + i - (4 + TEXT_BYTES);
        *byte ^= 1;
        CHECK(rt_gcm_open(open, p.bytes, TEXT_BYTES, p.tag) == -1);
        rt_gcm_free(open);
    }
    rt_gcm_free(seal);
}

static void a_packet_that_was_left_out_is_noticed(void)
{
    rt_gcm *seal = new_key(16, 1), *open = new_key(16, 0);
    packet p = clear_packet();
    CHECK(rt_gcm_seal(seal, p.bytes, TEXT_BYTES, p.tag) == 0);
    CHECK(rt_gcm_seal(seal, p.bytes, TEXT_BYTES, p.tag) == 0);
    CHECK(rt_gcm_open(open, p.bytes, TEXT_BYTES, p.tag) == -1);
    rt_gcm_free(seal);
    rt_gcm_free(open);
}

static void only_keys_of_128_and_256_bits_are_taken(void)
{
    const uint8_t key[64] = {0};
    for (size_t len = 0; len <= sizeof key; len++) {
        rt_gcm *gcm = rt_gcm_new(key, len, iv, 1);
        CHECK((gcm != NULL) == (len == 16 || len == 32));
        rt_gcm_free(gcm);
    }
}

static void more_than_libcrypto_can_count_is_refused(void)
{
    rt_gcm *gcm = new_key(16, 1);
    packet p = clear_packet();
    CHECK(rt_gcm_seal(gcm, p.bytes, (size_t)INT32_MAX + 1, p.tag) == -1);
    CHECK(rt_gcm_open(gcm, p.bytes, (size_t)INT32_MAX + 1, p.tag) == -1);
    rt_gcm_free(gcm);
}

static void freeing_nothing_is_allowed(void)
{
    rt_gcm_free(NULL);
}

int main(void)
{
    RUN(no_key_can_be_made_before_the_library_is_loaded);
    RUN(loading_again_gives_the_first_result);
    RUN(packets_are_sealed_as_another_implementation_does);
    RUN(the_packet_counter_wraps_without_touching_the_fixed_field);
    RUN(what_was_sealed_opens_to_the_same_bytes);
    RUN(a_changed_bit_anywhere_is_refused);
    RUN(a_packet_that_was_left_out_is_noticed);
    RUN(only_keys_of_128_and_256_bits_are_taken);
    RUN(more_than_libcrypto_can_count_is_refused);
    RUN(freeing_nothing_is_allowed);
    return 0;
}
