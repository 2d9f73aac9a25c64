// A name of the original framework's. It leads to tech_renaissance.h, which has all of them.
#ifdef TR_WITHOUT_PYTORCH_SESSION
#error "this program is built with TR_BUILD_PYTORCH_SESSION=OFF, which leaves this session out"
#endif
#include "../../tech_renaissance.h"
