// Stands in for libnvidia-ml.so.1, so that the real nvidia-ml-py can call it: one GPU, whose clock
// falls with each reading.
#include <cstring>

namespace {
const char* const UUID = "GPU-00010203-0405-0607-0809-0a0b0c0d0e0f";
constexpr int SUCCESS = 0, NOT_SUPPORTED = 3, NOT_FOUND = 6;
int gpu;
unsigned clock_mhz = 1800;
}  // namespace

extern "C" {

int nvmlInitWithFlags(unsigned) { return SUCCESS; }

int nvmlShutdown() { return SUCCESS; }

const char* nvmlErrorString(int code) { return code == NOT_FOUND ? "Not Found" : "an error"; }

int nvmlDeviceGetHandleByUUID(const char* uuid, void** device) {
    if (std::strcmp(uuid, UUID) != 0) return NOT_FOUND;
    *device = &gpu;
    return SUCCESS;
}

int nvmlDeviceGetClockInfo(void* device, int type, unsigned* clock) {
    if (device != &gpu || type != 1) return NOT_FOUND;  // 1 is the SM clock
    *clock = clock_mhz;
    clock_mhz -= 100;
    return SUCCESS;
}

int nvmlDeviceGetPowerUsage(void* device, unsigned* milliwatts) {
    *milliwatts = 71500;
    return device == &gpu ? SUCCESS : NOT_FOUND;
}

int nvmlDeviceGetTemperature(void*, int, unsigned*) { return NOT_SUPPORTED; }

int nvmlDeviceGetCurrentClocksEventReasons(void* device, unsigned long long* reasons) {
    *reasons = 0x1 | 0x4 | 0x40;  // idle, power limit, temperature (hardware)
    return device == &gpu ? SUCCESS : NOT_FOUND;
}

int nvmlDeviceGetCurrentClocksThrottleReasons(void* device, unsigned long long* reasons) {
    *reasons = 0x4;
    return device == &gpu ? SUCCESS : NOT_FOUND;
}
}
