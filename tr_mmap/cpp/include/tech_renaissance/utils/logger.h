// A name of the original framework's. It leads to tech_renaissance.h, which has all of them.
#include "../../tech_renaissance.h"
