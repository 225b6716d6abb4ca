/*
 * Boot flags for ipmi_sim (Debian's openipmi 2.0.33), which keeps neither the valid bit nor the EFI flag: with it alone, every
 * `chassis bootdev pxe options=efiboot` reads back as "invalid, legacy". This keeps the five bytes of boot parameter 5 as they were
 * sent, in hexadecimal digits, in the file that it is started with. Everything else is ipmi_sim's own.
 */
#include <stdio.h>
#include <OpenIPMI/serv.h>
#include <OpenIPMI/mcserv.h>
#include <OpenIPMI/ipmi_msgbits.h>

#define SET_BOOT_OPTIONS 0x08
#define GET_BOOT_OPTIONS 0x09
#define BOOT_FLAGS 5
#define BOOT_FLAGS_BYTES 5
#define INVALID_LENGTH 0xc7

static char path[4096];

static void set(lmc_data_t *mc, msg_t *msg, unsigned char *answer, unsigned int *length, void *data)
{
    *length = 1;
    if (msg->len < 1) {
        answer[0] = INVALID_LENGTH;
        return;
    }
    answer[0] = 0;
    if ((msg->data[0] & 0x7f) != BOOT_FLAGS)
        return;
    FILE *file = msg->len == 1 + BOOT_FLAGS_BYTES ? fopen(path, "w") : NULL;
    if (!file) {
        answer[0] = INVALID_LENGTH;
        return;
    }
    for (int i = 1; i <= BOOT_FLAGS_BYTES; i++)
        fprintf(file, "%02x", msg->data[i]);
    fclose(file);
}

static void get(lmc_data_t *mc, msg_t *msg, unsigned char *answer, unsigned int *length, void *data)
{
    unsigned int flags[BOOT_FLAGS_BYTES] = {0};
    FILE *file = fopen(path, "r");
    if (file) {
        for (int i = 0; i < BOOT_FLAGS_BYTES && fscanf(file, "%2x", &flags[i]) == 1; i++)
            ;
        fclose(file);
    }
    answer[0] = 0;
    answer[1] = 1;
    answer[2] = msg->len > 0 ? msg->data[0] & 0x7f : 0;
    for (int i = 0; i < BOOT_FLAGS_BYTES; i++)
        answer[3 + i] = answer[2] == BOOT_FLAGS ? flags[i] : 0;
    *length = 3 + BOOT_FLAGS_BYTES;
}

int ipmi_sim_module_print_version(sys_data_t *sys, char *options)
{
    return 0;
}

int ipmi_sim_module_init(sys_data_t *sys, const char *options)
{
    snprintf(path, sizeof(path), "%s", options);
    int error = ipmi_emu_register_cmd_handler(IPMI_CHASSIS_NETFN, SET_BOOT_OPTIONS, set, NULL);
    return error ? error : ipmi_emu_register_cmd_handler(IPMI_CHASSIS_NETFN, GET_BOOT_OPTIONS, get, NULL);
}

int ipmi_sim_module_post_init(sys_data_t *sys)
{
    return 0;
}
