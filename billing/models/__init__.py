"""The tables of billing, by subject; Django finds them here."""

from billing.models.credits import Credit
from billing.models.invoices import Invoice, InvoiceCounter, InvoiceLine, RatedLineInvoice
from billing.models.ledger import (
    SPENDING,
    AccountKind,
    Hold,
    HoldMove,
    LedgerAccount,
    LedgerEntry,
    LedgerTx,
    MoveKind,
    Shortfall,
)
from billing.models.operations import Operation
from billing.models.packages import TokenPackage
from billing.models.usage import (
    BillableSpan,
    CapacityReservation,
    EngineCounter,
    EngineCounterDelta,
    GatewayJournal,
    Meter,
    PriceSheet,
    Quarantine,
    RatedLine,
    ReceiptLeaf,
    ReceiptTree,
    ReservedSpan,
    UsageEvent,
)

__all__ = [
    "SPENDING",
    "AccountKind",
    "BillableSpan",
    "CapacityReservation",
    "Credit",
    "EngineCounter",
    "EngineCounterDelta",
    "GatewayJournal",
    "Hold",
    "HoldMove",
    "Invoice",
    "InvoiceCounter",
    "InvoiceLine",
    "LedgerAccount",
    "LedgerEntry",
    "LedgerTx",
    "Meter",
    "MoveKind",
    "Operation",
    "PriceSheet",
    "Quarantine",
    "RatedLine",
    "RatedLineInvoice",
    "ReceiptLeaf",
    "ReceiptTree",
    "ReservedSpan",
    "Shortfall",
    "TokenPackage",
    "UsageEvent",
]
