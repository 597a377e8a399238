"""What Django cannot say about the money tables: links, triggers, functions, row security, privileges."""

from django.db import migrations

from kernel.pricing import METERS
from tenants.rls import APPEND, FULL, READ, append_only, composite_fk, grant, protect

LINKS = """
ALTER TABLE ledger_account ALTER COLUMN id SET GENERATED ALWAYS;
ALTER TABLE ledger_tx ADD COLUMN db_xid xid8 NOT NULL DEFAULT pg_current_xact_id();
ALTER TABLE ledger_entry ADD FOREIGN KEY (account_id, currency) REFERENCES ledger_account (id, currency);
ALTER TABLE rated_line_invoice
  ADD FOREIGN KEY (event_id, meter) REFERENCES rated_line (event_id, meter),
  ADD FOREIGN KEY (invoice_id, line_no) REFERENCES invoice_line (invoice_id, line_no)
"""
# Placing, drawing or returning too much is refused by the CHECKs of hold and ledger_account.
HOLD_MOVED = """
CREATE FUNCTION hold_moved() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE h hold; d numeric; BEGIN
  SELECT * INTO STRICT h FROM hold WHERE id = NEW.hold_id FOR UPDATE;
  IF NEW.kind = 'place' AND h.sealed_at IS NOT NULL THEN RAISE EXCEPTION 'hold is sealed'; END IF;
  d := CASE NEW.kind WHEN 'place' THEN NEW.amount ELSE -NEW.amount END;
  UPDATE hold SET open = open + d WHERE id = h.id;
  UPDATE ledger_account SET held = held + d WHERE id = h.account_id;
  RETURN NEW; END $$;
CREATE TRIGGER hold_moved BEFORE INSERT ON hold_move FOR EACH ROW EXECUTE FUNCTION hold_moved()
"""
# The one way to set money aside: from a tenant's spending accounts in order, at most what is available.
# Inside a tenant's scope (web) only for that tenant's deployments. Returns what it placed.
HOLD_PLACE = """
CREATE FUNCTION hold_place(p_tenant uuid, p_currency text, p_subject text, p_generation int, p_transfer int,
                           p_amount numeric, p_whole boolean)
RETURNS numeric LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE scope text := current_setting('app.tenant', true); a record; h uuid; part numeric; rest numeric := p_amount;
BEGIN
  IF (session_user = 'moorage_web' OR scope <> '')
     AND (NULLIF(scope, '')::uuid IS DISTINCT FROM p_tenant OR p_subject NOT LIKE 'deployment:%') THEN
    RAISE EXCEPTION 'not this tenant''s hold' USING ERRCODE = 'insufficient_privilege'; END IF;
  PERFORM 1 FROM ledger_account WHERE tenant_id = p_tenant AND currency = p_currency
    AND kind IN ('promo', 'prepaid', 'receivable') ORDER BY id FOR UPDATE;
  IF p_whole AND p_amount > (SELECT COALESCE(sum(posted - held - min_available), 0) FROM ledger_account
      WHERE tenant_id = p_tenant AND currency = p_currency AND kind IN ('promo', 'prepaid', 'receivable')) THEN
    RETURN 0; END IF;
  FOR a IN SELECT id, posted - held - min_available AS available FROM ledger_account
      WHERE tenant_id = p_tenant AND currency = p_currency AND kind IN ('promo', 'prepaid', 'receivable')
      ORDER BY array_position(ARRAY['promo', 'prepaid', 'receivable'], kind) LOOP
    part := LEAST(a.available, rest);
    CONTINUE WHEN part IS NULL OR part <= 0;
    SELECT id INTO h FROM hold WHERE account_id = a.id AND subject = p_subject AND sealed_at IS NULL;
    IF h IS NULL THEN
      INSERT INTO hold (id, account_id, subject, generation) VALUES (gen_random_uuid(), a.id, p_subject, p_generation)
      RETURNING id INTO h; END IF;
    INSERT INTO hold_move (hold_id, seq, kind, amount, transfer)
      SELECT h, COALESCE(max(seq), 0) + 1, 'place', part, p_transfer FROM hold_move WHERE hold_id = h;
    rest := rest - part;
  END LOOP;
  RETURN p_amount - rest; END $$;
REVOKE ALL ON FUNCTION hold_place FROM PUBLIC;
GRANT EXECUTE ON FUNCTION hold_place TO moorage_web, moorage_system
"""
# In force = the latest at or before the instant, the tenant's before the public one.
SHEET_AT = """
CREATE FUNCTION sheet_at(k text, r text, cur char(3), t uuid, at timestamptz) RETURNS bytea STABLE LANGUAGE sql AS $$
  SELECT sha256 FROM (
    SELECT DISTINCT ON (tenant_id) * FROM price_sheet
    WHERE sku = k AND region = r AND currency = cur AND (tenant_id = t OR tenant_id IS NULL) AND effective_from <= at
    ORDER BY tenant_id, effective_from DESC) s
  WHERE body IS NOT NULL ORDER BY tenant_id NULLS LAST LIMIT 1 $$
"""
SHEET_AHEAD = """
CREATE FUNCTION sheet_ahead() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  IF NEW.effective_from < clock_timestamp() + interval '10 minutes' AND EXISTS (
    SELECT 1 FROM price_sheet p WHERE (p.sku, p.region, p.currency) = (NEW.sku, NEW.region, NEW.currency)
      AND p.tenant_id IS NOT DISTINCT FROM NEW.tenant_id) THEN
    RAISE EXCEPTION 'a price change is published ten minutes ahead'; END IF;
  RETURN NEW; END $$;
CREATE TRIGGER sheet_ahead BEFORE INSERT ON price_sheet FOR EACH ROW EXECUTE FUNCTION sheet_ahead()
"""
USAGE_COUNTS = """
CREATE FUNCTION usage_counts() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  IF EXISTS (SELECT 1 FROM jsonb_each_text(NEW.counts) c(k, v) LEFT JOIN meter m ON m.name = c.k
    WHERE m.name IS NULL OR (NEW.provenance <> 'correction' AND c.v::bigint < 0)
      OR (NEW.kind = 'accel') <> (c.k = 'accel_second')) THEN
    RAISE EXCEPTION 'unknown, negative or misplaced meter in %', NEW.counts; END IF;
  IF NOT EXISTS (SELECT 1 FROM price_sheet p
    WHERE p.sha256 = NEW.sheet AND (p.tenant_id IS NULL OR p.tenant_id = NEW.tenant_id)) THEN
    RAISE EXCEPTION 'no such price sheet for this tenant' USING ERRCODE = 'foreign_key_violation'; END IF;
  RETURN NEW; END $$;
CREATE TRIGGER usage_counts BEFORE INSERT ON usage_event FOR EACH ROW EXECUTE FUNCTION usage_counts()
"""
TX_BALANCES = """
CREATE FUNCTION tx_balances() RETURNS trigger LANGUAGE plpgsql AS $$ DECLARE bad int; BEGIN
  SELECT count(*) INTO bad FROM (SELECT 1 FROM ledger_entry WHERE tx_id = NEW.id
    GROUP BY currency HAVING sum(amount) <> 0 OR count(*) < 2) s;
  IF bad > 0 OR NOT EXISTS (SELECT 1 FROM ledger_entry WHERE tx_id = NEW.id) THEN
    RAISE EXCEPTION 'tx % does not balance', NEW.id; END IF;
  RETURN NULL; END $$;
CREATE CONSTRAINT TRIGGER tx_balances AFTER INSERT ON ledger_tx DEFERRABLE INITIALLY DEFERRED
  FOR EACH ROW EXECUTE FUNCTION tx_balances()
"""
ENTRY_LATE = """
CREATE FUNCTION entry_late() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$ BEGIN
  IF NOT EXISTS (SELECT 1 FROM ledger_tx WHERE id = NEW.tx_id AND db_xid = pg_current_xact_id()) THEN
    RAISE EXCEPTION 'entries only in the creating transaction'; END IF;
  UPDATE ledger_account SET posted = posted + NEW.amount WHERE id = NEW.account_id;
  RETURN NEW; END $$;
CREATE TRIGGER entry_late BEFORE INSERT ON ledger_entry FOR EACH ROW EXECUTE FUNCTION entry_late()
"""
INVOICE_GUARDS = """
CREATE FUNCTION invoice_line_frozen() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  IF EXISTS (SELECT 1 FROM invoice WHERE id = COALESCE(NEW.invoice_id, OLD.invoice_id) AND status <> 'draft') THEN
    RAISE EXCEPTION 'invoice is issued'; END IF;
  RETURN COALESCE(NEW, OLD); END $$;
CREATE TRIGGER frozen BEFORE INSERT OR UPDATE OR DELETE ON invoice_line
  FOR EACH ROW EXECUTE FUNCTION invoice_line_frozen();
CREATE FUNCTION invoice_guard() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  IF OLD.status <> 'draft' AND (TG_OP = 'DELETE' OR OLD.status <> 'issued' OR NEW.status NOT IN ('paid', 'void')
    OR to_jsonb(NEW) - 'status' <> to_jsonb(OLD) - 'status') THEN
    RAISE EXCEPTION 'an issued invoice only becomes paid or void'; END IF;
  RETURN COALESCE(NEW, OLD); END $$;
CREATE TRIGGER guard BEFORE UPDATE OR DELETE ON invoice FOR EACH ROW EXECUTE FUNCTION invoice_guard()
"""
METER_ROWS = "INSERT INTO meter (name, unit, cumulative) VALUES " + ", ".join(
    f"('{name}', '{unit}', {str(cumulative).lower()})" for name, (unit, cumulative) in sorted(METERS.items())
)
APPEND_ONLY = (
    "ledger_tx",
    "ledger_entry",
    "hold_move",
    "usage_event",
    "rated_line",
    "rated_line_invoice",
    "price_sheet",
    "receipt_leaf",
    "quarantine",
)


def owned(table: str, link: str, parent: str, key: str, *, system: str) -> migrations.RunSQL:
    """A table without a tenant of its own is seen where its parent row is seen."""
    return protect(table, using=f"EXISTS (SELECT 1 FROM {parent} p WHERE p.{key} = {table}.{link})", system=system)


class Migration(migrations.Migration):
    dependencies = [("billing", "0001_initial")]

    operations = [
        *(
            migrations.RunSQL(sql, migrations.RunSQL.noop)
            for sql in (
                LINKS,
                HOLD_MOVED,
                HOLD_PLACE,
                SHEET_AT,
                SHEET_AHEAD,
                USAGE_COUNTS,
                TX_BALANCES,
                ENTRY_LATE,
                INVOICE_GUARDS,
                METER_ROWS,
            )
        ),
        composite_fk("ledger_tx", "reverses_id", "ledger_tx"),
        composite_fk("usage_event", "corrects", "usage_event", "event_id"),
        composite_fk("invoice", "corrects", "invoice"),
        # Only triggers move posted, held and open: nobody else may write these columns.
        protect(
            "ledger_account",
            system="SELECT, INSERT (tenant_id, currency, kind, min_available), UPDATE (min_available)",
        ),
        protect("ledger_tx", system=APPEND),
        owned("ledger_entry", "account_id", "ledger_account", "id", system=APPEND),
        owned("hold", "account_id", "ledger_account", "id", system="SELECT, UPDATE (sealed_at, expires_at)"),
        owned("hold_move", "hold_id", "hold", "id", system=APPEND),
        grant("meter", web=READ, system=READ),
        protect("price_sheet", also_read="tenant_id IS NULL", system=APPEND),
        protect("capacity_reservation"),
        protect("usage_event", system=APPEND),
        owned("rated_line", "event_id", "usage_event", "event_id", system=APPEND),
        protect("invoice"),
        owned("invoice_line", "invoice_id", "invoice", "id", system=FULL),
        owned("rated_line_invoice", "invoice_id", "invoice", "id", system=APPEND),
        grant("invoice_counter"),
        protect("receipt_tree", system="SELECT, INSERT, UPDATE (size)"),
        owned("receipt_leaf", "tree_id", "receipt_tree", "id", system=APPEND),
        grant("gateway_journal"),
        grant("engine_counter_delta", system=APPEND),
        protect("quarantine", web="", system=APPEND),
        protect("billable_span", system="SELECT, INSERT, UPDATE"),
        *(append_only(table) for table in APPEND_ONLY),
    ]
